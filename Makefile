# The two commands of a fresh machine: `make demo` shows it, `make test` checks it. Both install what they need.

CARGO ?= cargo

# Where Wireshark and tshark look for programs of the user's own that capture for them.
EXTCAP_DIR ?= $(or $(shell tshark -G folders 2>/dev/null | sed -n 's/^Personal Extcap path:[[:space:]]*//p'),$(HOME)/.config/wireshark/extcap)

.PHONY: all setup release demo check test bench install uninstall install-extcap clean

all: release

# Debian packages, by apt (with sudo when not root); nothing if they are there.
setup:
	@scripts/setup.sh

# One program under many names, as Netkit has them.
FAMILY = vlist vhalt vcrash vconnect vcommand vexec vconf vconfig vclean vmconsole vplug vdump \
    lstart lhalt lcrash lclean lrestart linfo ltest uml_switch

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

# Programs, their names, manual pages and completions. What was installed is written down for `make uninstall`.
# TUNCTL=yes gives tapctl that name as well.
PREFIX ?= /usr/local
BUILT = target/release
TO = $(DESTDIR)$(PREFIX)
LIST = $(TO)/lib/hubbub/installed

install: release
	rm -rf target/dist
	$(CARGO) xtask dist target/dist
	install -d "$(TO)/bin" "$(TO)/lib/hubbub" "$(TO)/share"
	install -m 755 $(BUILT)/vstart $(BUILT)/switchd $(BUILT)/tapctl "$(TO)/bin"
	install -m 755 $(BUILT)/hubbub-init "$(TO)/lib/hubbub"
	@cd "$(TO)/bin" && for name in $(FAMILY) $(if $(filter yes,$(TUNCTL)),tunctl); do \
	    case $$name in uml_switch) of=switchd;; tunctl) of=tapctl;; *) of=vstart;; esac; \
	    ln -sf $$of $$name && echo bin/$$name; done >"$(LIST)"
	@printf 'bin/%s\n' vstart switchd tapctl >>"$(LIST)"
	@echo lib/hubbub/hubbub-init >>"$(LIST)"
	cp -R target/dist/share "$(TO)"
	@cd target/dist && find share -type f >>"$(LIST)"

uninstall:
	@test -f "$(LIST)" || { echo "nothing is installed in $(TO)" >&2; exit 1; }
	cd "$(TO)" && while read -r file; do rm -f "$$file"; done <lib/hubbub/installed
	rm -f "$(LIST)"
	rmdir "$(TO)/lib/hubbub"

clean:
	$(CARGO) clean
