//! What the firewall must do for the taps, whichever firewall it is.
//!
//! For each tap with an address:
//!
//! * only what comes from the declared subnet passes (`sources`);
//! * the host itself answers pings and what it asked for, and nothing else, unless `allow_host`; a port of the host
//!   that is redirected elsewhere (a container's, say) counts as the host's;
//! * nothing passes between the taps of two users, unless both said `allow_taps`;
//! * what leaves the subnet for elsewhere is masqueraded.
//!
//! All of it lives in a container of our own: the table `inet hubbub`, or chains named `HUBBUB-*` with one jump each.
//! The container is a function of the journal's taps and replaced as a whole.

pub(crate) mod iptables;
pub(crate) mod nft;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::journal::Tap;
use crate::name::Device;
use crate::tool::{Tool, ToolError};

/// Which firewall has our rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// iptables and ip6tables.
    Iptables,
    /// nftables.
    Nft,
    /// No rules at all: neither masquerading nor protection of the host.
    None,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Iptables => "iptables",
            Self::Nft => "nft",
            Self::None => "none",
        })
    }
}

/// A table or base chain that iptables makes when its first rule comes, and never takes away again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fresh {
    /// `ip` or `ip6`.
    pub(crate) family: String,
    pub(crate) table: String,
    /// The chain; the table itself if absent.
    pub(crate) chain: Option<String>,
}

/// What one tap needs.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Guard {
    pub(crate) device: Device,
    pub(crate) sources4: Vec<Ipv4Net>,
    pub(crate) sources6: Vec<Ipv6Net>,
    pub(crate) host4: Option<Ipv4Addr>,
    pub(crate) host6: Option<Ipv6Addr>,
    pub(crate) nat4: Option<Ipv4Net>,
    pub(crate) nat6: Option<Ipv6Net>,
    pub(crate) allow_host: bool,
    /// Taps with which nothing is exchanged.
    pub(crate) apart: Vec<Device>,
}

/// What one firewall must do for all taps under it.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) guards: Vec<Guard>,
}

impl Rules {
    /// The rules for the taps that are under `backend`.
    pub(crate) fn of(taps: &[Tap], backend: Backend) -> Self {
        let ours = taps
            .iter()
            .filter(|tap| tap.firewall == backend && tap.bridge.is_none());
        Self {
            guards: ours.map(|tap| guard(tap, taps)).collect(),
        }
    }

    pub(crate) fn has_v6(&self) -> bool {
        self.guards.iter().any(|guard| !guard.sources6.is_empty())
    }
}

fn guard(tap: &Tap, all: &[Tap]) -> Guard {
    let host = |address: &IpAddr| IpNet::from(*address);
    let routes: Vec<IpNet> = tap.routes.iter().map(host).collect();
    let sources4 = tap.address.iter().map(Ipv4Net::trunc);
    let sources6 = tap.address6.iter().map(Ipv6Net::trunc);
    Guard {
        device: tap.device.clone(),
        sources4: sources4
            .chain(routes.iter().filter_map(|net| match net {
                IpNet::V4(net) => Some(*net),
                IpNet::V6(_) => None,
            }))
            .collect(),
        sources6: sources6
            .chain(routes.iter().filter_map(|net| match net {
                IpNet::V6(net) => Some(*net),
                IpNet::V4(_) => None,
            }))
            .collect(),
        host4: tap.address.map(|net| net.addr()),
        host6: tap.address6.map(|net| net.addr()),
        nat4: tap.address.filter(|_| tap.nat).map(|net| net.trunc()),
        nat6: tap.address6.filter(|_| tap.nat).map(|net| net.trunc()),
        allow_host: tap.allow_host,
        apart: all
            .iter()
            .filter(|other| other.uid != tap.uid && !(other.allow_taps && tap.allow_taps))
            .map(|other| other.device.clone())
            .collect(),
    }
}

/// The firewalls of this host as they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The nftables rules (`nft -j list ruleset`), if there is an nft.
    pub(crate) nft: Option<Value>,
    /// iptables, if there is one.
    pub(crate) iptables: Option<iptables::Seen>,
}

impl Seen {
    /// Looks, without changing anything: listing makes no table under either tool.
    pub(crate) fn look() -> Result<Self, ToolError> {
        let nft = match Tool::find("nft") {
            Some(tool) => Some(nft::look(&tool)?),
            None => None,
        };
        Ok(Self {
            nft,
            iptables: iptables::Seen::look()?,
        })
    }

    /// The firewall this host uses: iptables if it has rules or a policy there, else nftables if that is installed.
    pub(crate) fn in_use(&self) -> Option<Backend> {
        match (&self.nft, &self.iptables) {
            (_, Some(iptables)) if iptables.in_use() => Some(Backend::Iptables),
            (Some(_), _) => Some(Backend::Nft),
            (None, Some(_)) => Some(Backend::Iptables),
            (None, None) => None,
        }
    }

    /// True if the tools for `backend` are installed.
    pub(crate) fn has(&self, backend: Backend) -> bool {
        match backend {
            Backend::Nft => self.nft.is_some(),
            Backend::Iptables => self.iptables.is_some(),
            Backend::None => true,
        }
    }

    /// What will still drop the tap's traffic although our rules let it pass, with the command that would help.
    pub(crate) fn obstacles(&self, backend: Backend, device: &Device) -> Vec<String> {
        let own_filter = |iptables: &iptables::Seen| backend == Backend::Iptables && iptables.nft_variant;
        let skip_policy = self.iptables.as_ref().is_some_and(own_filter);
        let mut found = Vec::new();
        if let Some(iptables) = &self.iptables {
            found.extend(iptables.obstacles(backend, device));
        }
        if let Some(ruleset) = &self.nft {
            // What belongs to iptables was looked at above, in its own words.
            let tables = self
                .iptables
                .as_ref()
                .is_some_and(|iptables| iptables.nft_variant);
            found.extend(nft::obstacles(ruleset, device, tables || skip_policy));
        }
        found
    }

    /// The tables and base chains iptables will make for these rules.
    pub(crate) fn fresh(&self, rules: &Rules, backend: Backend) -> Vec<Fresh> {
        match (&self.nft, &self.iptables) {
            (Some(ruleset), Some(iptables)) if backend == Backend::Iptables && iptables.nft_variant => {
                iptables::fresh(ruleset, rules)
            }
            _ => Vec::new(),
        }
    }
}

/// Why rules could not be put in or taken out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirewallError {
    #[error("cannot find {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Makes the container hold exactly these rules.
pub(crate) fn install(backend: Backend, rules: &Rules) -> Result<(), FirewallError> {
    match backend {
        Backend::Nft => nft::install(rules),
        Backend::Iptables => iptables::install(rules),
        Backend::None => Ok(()),
    }
}

/// Makes the container hold the rules of the taps that are left, and takes away the tables of IPv6 if none of these
/// needs it any longer.
pub(crate) fn update(backend: Backend, rules: &Rules, fresh: &[Fresh]) -> Result<(), FirewallError> {
    install(backend, rules)?;
    if rules.has_v6() {
        return Ok(());
    }
    let six: Vec<Fresh> = fresh
        .iter()
        .filter(|item| item.family == "ip6")
        .cloned()
        .collect();
    if six.is_empty() {
        Ok(())
    } else {
        nft::delete_unused(&six)
    }
}

/// Takes the container away, and what came into being for it as far as nobody else uses it by now.
pub(crate) fn remove(backend: Backend, fresh: &[Fresh]) -> Result<(), FirewallError> {
    match backend {
        Backend::Nft => nft::remove(),
        Backend::Iptables => iptables::remove(fresh),
        Backend::None => Ok(()),
    }
}
