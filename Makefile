# The two commands of a fresh machine: `make demo` shows it, `make test` checks it. Both install what they need.

CARGO ?= cargo

# Where Wireshark and tshark look for programs of the user's own that capture for them.
EXTCAP_DIR ?= $(or $(shell tshark -G folders 2>/dev/null | sed -n 's/^Personal Extcap path:[[:space:]]*//p'),$(HOME)/.config/wireshark/extcap)

.PHONY: all setup release demo check test bench install-extcap clean

all: release

# Debian packages, by apt (with sudo when not root); nothing if they are there.
setup:
	@scripts/setup.sh

# One program under many names, as Netkit has them.
FAMILY = vlist vhalt vcrash vconnect vdump uml_switch

release: setup
	$(CARGO) build --workspace --release
	@cd target/release && for name in $(FAMILY); do \
	    case $$name in uml_switch) of=switchd;; *) of=vstart;; esac; ln -sf $$of $$name; done

demo: release
	scripts/demo.sh target/release

# Formatting and lints; warnings are errors.
check: setup
	$(CARGO) xtask check

# Every test, those with real UML kernels included.
test: setup
	$(CARGO) xtask test

# switchd beside Debian's uml_switch and vde_switch, and 1,000 domains in one process; results go to bench/README.md.
bench: setup
	$(CARGO) build --release -p bench -p switchd -p vstart
	target/release/hubbench --patience 2 --many-domains 1000 --readme bench/README.md
	target/release/guestbench --rounds 5 --readme bench/README.md

# The domains become interfaces of Wireshark and tshark.
install-extcap: release
	install -D -m 755 target/release/switchd "$(DESTDIR)$(EXTCAP_DIR)/hubbub-extcap"

clean:
	$(CARGO) clean
