//! Interfaces of the host as ports: what is asked for.

use serde::{Deserialize, Serialize};

/// An interface of the host, joined to a domain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Its name.
    pub interface: String,
    /// Only this VLAN of it: the domain has its frames without their tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Frames for others than the host as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub promisc: bool,
}

/// An interface of the host, listened to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SniffSpec {
    /// Its name.
    pub interface: String,
    /// Only what this expression of libpcap accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Frames for others than the host as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub promisc: bool,
}

/// The numbers a VLAN can have.
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

/// A text or number that is no VLAN's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no VLAN: a number from {first} to {last}", first = VLANS.start(), last = VLANS.end())]
pub struct BadVlan(String);

/// Reads the number of a VLAN.
///
/// # Errors
/// If it is none.
pub fn vlan(text: &str) -> Result<u16, BadVlan> {
    let number = text.parse().ok().filter(|number| VLANS.contains(number));
    number.ok_or_else(|| BadVlan(text.to_owned()))
}

impl NicSpec {
    /// Makes sure that it can be.
    ///
    /// # Errors
    /// If its VLAN is none.
    pub fn check(&self) -> Result<(), BadVlan> {
        self.vlan
            .map_or(Ok(()), |number| vlan(&number.to_string()).map(drop))
    }
}
