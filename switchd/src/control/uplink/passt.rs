//! passt over a connection it inherits as its standard input, each frame behind its length. It serves one machine,
//! and needs a default route on the host.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use proto::uplink::{Carrier, FIRST_GUEST, Protocol, Publish};
use tokio::time::sleep;

use super::helper::Helper;
use super::{Plan, StartError};
use crate::control::handshake::SOCKET_BUFFER;
use crate::datapath::port::Link;
use crate::datapath::stream;

/// One that does not like its arguments or the host's network says so within this time.
const DOUBT: Duration = Duration::from_millis(200);

/// Starts it.
pub(super) async fn start(plan: &Plan) -> Result<(Helper, Link), StartError> {
    let (ours, theirs) = UnixStream::pair()?;
    netio::unix::set_buffers(&ours, SOCKET_BUFFER)?;
    let link = stream::Link::new(OwnedFd::from(ours))?;
    let mut helper = Helper::start(plan, &arguments(plan), Stdio::from(OwnedFd::from(theirs)))?;
    tokio::select! {
        why = helper.ended() => Err(refusal(plan, why)),
        () = sleep(DOUBT) => Ok((helper, Link::UplinkStream(link))),
    }
}

fn refusal(plan: &Plan, why: String) -> StartError {
    match plan.spec.publish.first() {
        Some(&publish) if why.contains("bind") => StartError::Publish(publish, format!("passt says: {why}")),
        _ => StartError::Ended(Carrier::Passt, why),
    }
}

/// The same addresses as slirp4netns gives, but for the name server.
fn arguments(plan: &Plan) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--quiet",
        "--stderr",
        "--fd=0",
        "--netmask=24",
        "--gateway=10.0.2.2",
        // Guests have no business with what listens on the host's loopback alone. They are told the host's name
        // servers, but for one that listens there.
        "--no-map-gw",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--address={FIRST_GUEST}"));
    arguments.push(format!("--mtu={}", plan.mtu));
    if !plan.spec.ipv6 {
        arguments.push("--ipv4-only".to_owned());
    }
    arguments.extend(plan.spec.publish.iter().map(forward));
    arguments
}

fn forward(publish: &Publish) -> String {
    let option = match publish.protocol {
        Protocol::Tcp => "--tcp-ports",
        Protocol::Udp => "--udp-ports",
    };
    let (host, guest) = (publish.host.port(), publish.guest.port());
    match publish.host.ip() {
        address if address.is_unspecified() => format!("{option}={host}:{guest}"),
        address => format!("{option}={address}/{host}:{guest}"),
    }
}
