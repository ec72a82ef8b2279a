# The two commands of a fresh machine: `make demo` shows it, `make test` checks it. Both install what they need.

CARGO ?= cargo

# Where Wireshark and tshark look for programs of the user's own that capture for them.
EXTCAP_DIR ?= $(or $(shell tshark -G folders 2>/dev/null | sed -n 's/^Personal Extcap path:[[:space:]]*//p'),$(HOME)/.config/wireshark/extcap)

.PHONY: all setup release demo check test bench install put uninstall install-extcap clean

all: release

# Debian packages, by apt (with sudo when not root); nothing if they are there.
setup:
	@scripts/setup.sh

# One program under many names, as Netkit has them.
FAMILY = vlist vhalt vcrash vconnect vcommand vexec vdisk vconf vconfig vclean vmconsole vplug vdump \
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

# switchd beside Debian's uml_switch and vde_switch and the kernel's bridge, and many domains in one process: tables go
# to bench/README.md, a drawing to bench/rates.svg. Half an hour at most. Without root, what needs taps is left out.
bench: setup
	$(CARGO) build --release -p bench -p switchd -p vstart
	mkdir -p target/bench
	target/release/hubbench --seconds 0.4 --rounds 5 --patience 0.5 --many-domains 1000 --converge 8 --busy-domains --json \
	    --readme bench/README.md >target/bench/hubbench.json
	target/release/guestbench --rounds 3 --readme bench/README.md
	BIN=target/release bench/gains.sh 1 3 >target/bench/gains.md
	@if [ "$$(id -u)" = 0 ]; then \
	    bench/taps.sh 2 3 >target/bench/taps.md && bench/guests.sh 2 3 >target/bench/guests.md; \
	else echo "bench: not root: neither taps nor guests beside the kernel's bridge are measured" >&2; fi
	target/release/benchreport --hubbench target/bench/hubbench.json --readme bench/README.md --svg bench/rates.svg \
	    --table gains=target/bench/gains.md $$([ "$$(id -u)" != 0 ] || \
	    echo --table taps=target/bench/taps.md --table guests=target/bench/guests.md)

# The domains become interfaces of Wireshark and tshark.
install-extcap: release
	install -D -m 755 $(BUILT)/switchd "$(DESTDIR)$(EXTCAP_DIR)/hubbub-extcap"

# Programs, their names, manual pages and completions. What was installed, and which directories were made for it, is
# written down for `make uninstall`. TUNCTL=yes gives tapctl that name as well.
PREFIX ?= /usr/local
BUILT ?= target/release
DIST ?= target/dist
XTASK ?= $(CARGO) xtask
TO = $(DESTDIR)$(PREFIX)
LIST = $(TO)/lib/hubbub/installed
PLACES = . bin lib lib/hubbub share share/man share/man/man1 share/bash-completion share/bash-completion/completions \
    share/zsh share/zsh/site-functions share/fish share/fish/vendor_completions.d
NAMES = $(FAMILY) $(if $(filter yes,$(TUNCTL)),tunctl)

install: release
	@$(MAKE) --no-print-directory put

# What `install` does once everything is built.
put:
	rm -rf "$(DIST)"
	$(XTASK) dist "$(DIST)"
	@[ "$(TUNCTL)" = yes ] || rm -f "$(DIST)/share/man/man1/tunctl.1"
	@made=$$(test ! -f "$(LIST)" || grep '/$$' "$(LIST)"; \
	    for place in $(PLACES); do test -d "$(TO)/$$place" || echo "$$place/"; done); \
	    for place in $(PLACES); do install -d "$(TO)/$$place" || exit 1; done; \
	    printf '%s\n' "$$made" | sed '/^$$/d' | LC_ALL=C sort -ru >"$(LIST)"
	install -m 755 $(BUILT)/vstart $(BUILT)/switchd $(BUILT)/tapctl "$(TO)/bin"
	install -m 755 $(BUILT)/hubbub-init "$(TO)/lib/hubbub"
	install -m 644 $(BUILT)/libhubbub_xstate.so "$(TO)/lib/hubbub"
	@cd "$(TO)/bin" && for name in $(NAMES); do \
	    case $$name in uml_switch) of=switchd;; tunctl) of=tapctl;; *) of=vstart;; esac; \
	    ln -sf $$of $$name && echo bin/$$name; done >>"$(LIST)"
	@printf '%s\n' bin/vstart bin/switchd bin/tapctl lib/hubbub/hubbub-init lib/hubbub/libhubbub_xstate.so >>"$(LIST)"
	cp -R "$(DIST)/share" "$(TO)"
	@cd "$(DIST)" && find share -type f >>"$(LIST)"

# Files first; then the directories that were made for them, unless somebody else has put something there.
uninstall:
	@test -f "$(LIST)" || { echo "nothing is installed in $(TO)" >&2; exit 1; }
	@cd "$(TO)" && list=$$(cat lib/hubbub/installed) && rm -f lib/hubbub/installed && \
	    for file in $$list; do case $$file in */) ;; *) rm -f "$$file";; esac; done && \
	    for place in $$list; do case $$place in \
	        ./) rmdir --ignore-fail-on-non-empty "$(TO)";; \
	        */) test ! -d "$$place" || rmdir --ignore-fail-on-non-empty "$$place";; esac; done

clean:
	$(CARGO) clean
