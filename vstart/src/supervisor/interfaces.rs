//! Interfaces of a machine that runs: one more, one less, and those that lost switchd.
//!
//! The kernel does its part at the management console (`config`, `remove`). In a guest with our agent the rest is done
//! there; other guests are on their own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use proto::DomainName;
use proto::ctl::PortRow;
use tokio::sync::oneshot;

use super::run::Life;
use super::viewers::Answer;
use crate::kernel_args::{interface_word, name_in_guest};
use crate::machine::{Attachment, Interface};
use crate::mconsole;
use crate::switch::Client;
use crate::transport::{Reach, Transport};

/// A change somebody asks for, and where the answer goes.
pub(crate) struct Change {
    pub(crate) what: What,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// What is to be changed.
pub(crate) enum What {
    /// One interface more, and the device of the tap if that is where it leads.
    Plug(Interface, Option<String>),
    /// The interface of this number less.
    Unplug(u32),
}

impl Life<'_> {
    pub(super) async fn change(&mut self, change: Change) {
        let result = match change.what {
            What::Plug(interface, tap) => self.plug(interface, tap).await,
            What::Unplug(number) => self.unplug(number).await,
        };
        let answer = result.map_or_else(|error| Answer::Error(format!("{error:#}")), |()| Answer::Done);
        // Whoever asked may have left.
        let _ = change.answer.send(answer);
    }

    /// Makes sure the domains of all interfaces exist, and goes on holding them.
    pub(super) async fn hold_domains(
        &mut self,
        more: Option<&Interface>,
        tap: Option<String>,
    ) -> Result<BTreeMap<DomainName, Reach>> {
        let interfaces = self.plan.machine.interfaces.iter().chain(more);
        let domains: BTreeSet<DomainName> = interfaces.map(|i| i.attachment.domain()).collect();
        self.holds.hold(domains, tap).await
    }

    async fn plug(&mut self, interface: Interface, tap: Option<String>) -> Result<()> {
        let name = interface.name();
        if let Some(there) = self.interface(interface.number) {
            bail!(
                "it is attached to domain {} already\nhint: 'vconf {} --{name}=' detaches it",
                there.attachment,
                self.plan.machine.name
            );
        }
        let tap = tap.or_else(|| self.holds.tap());
        let domains = self.hold_domains(Some(&interface), tap).await?;
        if let Err(error) = self.plug_in(&interface, &domains).await {
            self.hold_domains(None, self.holds.tap()).await?;
            return Err(error);
        }
        let interfaces = &mut self.plan.machine.interfaces;
        let at = interfaces.partition_point(|other| other.number < interface.number);
        interfaces.insert(at, interface);
        self.note_interfaces()
    }

    async fn plug_in(&self, interface: &Interface, domains: &BTreeMap<DomainName, Reach>) -> Result<()> {
        comes_and_goes(interface)?;
        let machine = &self.plan.machine;
        let word = interface_word(machine, interface, domains)?;
        self.console(&format!("config {word}")).await?;
        if let Err(error) = self.make_ready(interface).await {
            // It can only be in the way; that it does not go is the lesser trouble.
            let device = interface.transport.device(interface.number);
            let _ = self.console(&format!("remove {device}")).await;
            return Err(error);
        }
        Ok(())
    }

    /// The guest's part of a new interface.
    async fn make_ready(&self, interface: &Interface) -> Result<()> {
        let (given, name) = (
            interface.transport.device(interface.number),
            name_in_guest(&self.plan.machine, interface),
        );
        if given != name {
            self.guest(&format!("ip link set {given} name {name}")).await?;
        }
        match &interface.attachment {
            // As at the start of the machine; a default route that is there stays.
            Attachment::Tap { host, guest } => {
                self.guest(&format!(
                    "ip address add {guest}/24 dev {name} && ip link set {name} up && \
                     {{ ip route show default | grep -q . || ip route add default via {host}; }}"
                ))
                .await
            }
            Attachment::Nat => {
                self.guest(&format!(
                    "/run/hubbub/init @dhcp {name} </dev/null >/dev/null 2>&1 &"
                ))
                .await
            }
            Attachment::Domain(_) => Ok(()),
        }
    }

    async fn unplug(&mut self, number: u32) -> Result<()> {
        let Some(interface) = self.interface(number).cloned() else {
            bail!("there is none");
        };
        comes_and_goes(&interface)?;
        let name = name_in_guest(&self.plan.machine, &interface);
        // An interface that is up cannot be removed.
        let down = self.guest(&format!("ip link set {name} down")).await;
        let device = interface.transport.device(number);
        if let Err(error) = self.console(&format!("remove {device}")).await {
            down.with_context(|| format!("cannot take {name} down in the machine"))?;
            let hint = match self.link {
                None => format!("\nhint: bring it down in the machine first: 'ip link set {name} down'"),
                Some(_) => String::new(),
            };
            bail!("{error:#}{hint}");
        }
        self.plan
            .machine
            .interfaces
            .retain(|other| other.number != number);
        self.note_interfaces()?;
        self.hold_domains(None, self.holds.tap()).await.map(drop)
    }

    /// switchd was away and its domains are there again: interfaces whose port has gone must connect again, which takes
    /// somebody in the guest.
    pub(super) async fn reconnect(&mut self) {
        if self.link.is_none() {
            return;
        }
        let Ok(lost) = self.lost().await else {
            // switchd is away again: we will be told when it is back.
            return;
        };
        for interface in lost {
            if let Err(error) = self.reconnect_one(&interface).await {
                let text = format!("cannot connect {} again: {error:#}", interface.name());
                // Nobody else is there to be told.
                let _ = self.console(&format!("log hubbub: {text}")).await;
            }
        }
    }

    /// Interfaces in domains where this machine has fewer ports than it should.
    async fn lost(&self) -> Result<Vec<Interface>> {
        let dirs = self.plan.dirs.clone();
        let ports = tokio::task::spawn_blocking(move || Client::connect(&dirs)?.all_ports()).await??;
        let kernel = self.record.as_ref().and_then(|record| record.kernel);
        let kernel = kernel.and_then(|kernel| u32::try_from(kernel.pid).ok());
        let ours = |port: &&PortRow| port.peer.is_some_and(|peer| Some(peer.pid) == kernel);
        // Whoever holds our domains hands sockets over again.
        let interfaces = self.plan.machine.interfaces.iter();
        let interfaces: Vec<_> = interfaces
            .filter(|interface| interface.transport != Transport::Fd)
            .collect();
        let is_lost = |interface: &&&Interface| {
            let domain = interface.attachment.domain();
            let there = ports
                .iter()
                .filter(ours)
                .filter(|port| port.domain == domain)
                .count();
            there
                < interfaces
                    .iter()
                    .filter(|other| other.attachment.domain() == domain)
                    .count()
        };
        Ok(interfaces.iter().filter(is_lost).copied().cloned().collect())
    }

    async fn reconnect_one(&mut self, interface: &Interface) -> Result<()> {
        comes_and_goes(interface)?;
        let name = name_in_guest(&self.plan.machine, interface);
        let reopens = interface.transport.reopens();
        if self
            .guest(&format!("{}reopens={reopens}{LET_GO}", head(&name)))
            .await
            .is_ok()
        {
            return Ok(());
        }
        // Its sockets are opened but once, or (Linux 6.1, vector) cannot be after a failure: so another interface.
        let domains = self.hold_domains(None, self.holds.tap()).await?;
        let (device, machine) = (interface.transport.device(interface.number), &self.plan.machine);
        let word = interface_word(machine, interface, &domains)?;
        self.console(&format!("remove {device}")).await?;
        self.console(&format!("config {word}")).await?;
        if device != name {
            self.guest(&format!("ip link set {device} name {name}")).await?;
        }
        self.guest(&format!("{}{BRING_BACK}", head(&name))).await
    }

    fn interface(&self, number: u32) -> Option<&Interface> {
        let interfaces = &self.plan.machine.interfaces;
        interfaces.iter().find(|interface| interface.number == number)
    }

    fn note_interfaces(&mut self) -> Result<()> {
        if let Some(record) = &mut self.record {
            record
                .machine
                .interfaces
                .clone_from(&self.plan.machine.interfaces);
            self.claim.write(record)?;
        }
        Ok(())
    }

    /// Gives the kernel a command.
    async fn console(&self, command: &str) -> Result<()> {
        let socket = self.plan.dirs.mconsole_socket(&self.plan.machine.name);
        let command = command.to_owned();
        tokio::task::spawn_blocking(move || mconsole::command(&socket, &command, PATIENCE)).await??;
        Ok(())
    }

    /// Gives the guest's shell a command, if there is an agent to do it.
    async fn guest(&self, command: &str) -> Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let (code, said) = tokio::time::timeout(PATIENCE, link.command(command))
            .await
            .context("the machine's agent does not answer")??;
        if code != 0 {
            bail!("{}", said.trim());
        }
        Ok(())
    }
}

/// Some drivers know only the interfaces the kernel was started with.
fn comes_and_goes(interface: &Interface) -> Result<()> {
    let transport = interface.transport;
    if !transport.comes_and_goes() {
        bail!(
            "by transport {transport}, interfaces come and go with the machine only\n\
             hint: choose another with --transport, or start the machine again"
        );
    }
    Ok(())
}

fn head(interface: &str) -> String {
    format!("n={interface}; d=/run/hubbub/{interface}; mkdir -p /run/hubbub\n")
}

/// Connects an interface again by taking it down and up, which costs it its routes. Fails, with the interface down, if
/// that is no way, if it was down (it may have failed before), or if it does not come up.
const LET_GO: &str = r#"
ip -o address show dev $n scope global | while read -r _ _ _ a _; do echo "$a"; done >$d.addresses
for v in 4 6; do ip -$v route show dev $n | grep -v 'proto kernel' | sed 's/ linkdown//' >$d.routes$v; done
if ip link show dev $n up | grep -q .; then touch $d.up; else rm -f $d.up; exit 3; fi
echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/$n/keep_addr_on_down
ip link set $n down
$reopens && ip link set $n up || exit 4
for v in 4 6; do while read -r r; do ip -$v route replace $r dev $n; done <$d.routes$v; done
exit 0
"#;

/// Gives a new interface what the one before it had.
const BRING_BACK: &str = r#"
while read -r a; do ip address add "$a" dev $n; done <$d.addresses
[ -e $d.up ] || exit 0
ip link set $n up || exit 4
for v in 4 6; do while read -r r; do ip -$v route replace $r dev $n; done <$d.routes$v; done
exit 0
"#;

/// A guest that is busy answers between two things it does.
const PATIENCE: Duration = Duration::from_secs(10);
