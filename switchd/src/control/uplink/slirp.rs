//! slirp4netns as a vector guest's peer (`--target-type=bess`): it listens, we connect, a record is a frame.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use proto::uplink::{Carrier, Publish};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::sleep;

use super::helper::Helper;
use super::{Plan, StartError};
use crate::control::handshake::SOCKET_BUFFER;
use crate::datapath::bess;
use crate::datapath::port::Link;

/// Between two looks whether it listens.
const PAUSE: Duration = Duration::from_millis(5);

/// Starts it, connects, and publishes ports.
pub(super) async fn start(plan: &Plan) -> Result<(Helper, Link), StartError> {
    // One that a killed daemon left before it was connected to waits for just that, and ends.
    drop(netio::unix::connect_seqpacket(&plan.socket));
    plan.clear();
    let mut helper = Helper::start(plan, &arguments(plan), Stdio::piped())?;
    let connection = loop {
        match netio::unix::connect_seqpacket(&plan.socket) {
            Ok(connection) => break connection,
            Err(error) if is_early(&error) => tokio::select! {
                why = helper.ended() => return Err(StartError::Ended(Carrier::Slirp4netns, why)),
                () = sleep(PAUSE) => {}
            },
            Err(error) => return Err(error.into()),
        }
    };
    netio::unix::set_buffers(&connection, SOCKET_BUFFER)?;
    for &publish in &plan.spec.publish {
        tokio::select! {
            why = helper.ended() => return Err(StartError::Ended(Carrier::Slirp4netns, why)),
            published = self::publish(&plan.orders, publish) => published?,
        }
    }
    Ok((helper, Link::Uplink(bess::Link::new(connection))))
}

fn arguments(plan: &Plan) -> Vec<String> {
    let mut arguments = [
        "--target-type=bess",
        // The daemon's end of the pipe goes with the daemon.
        "--exit-fd=0",
        "--enable-seccomp",
        // Guests have no business with what listens on the host's loopback alone.
        "--disable-host-loopback",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--mtu={}", plan.mtu));
    if plan.spec.ipv6 {
        arguments.push("--enable-ipv6".to_owned());
    }
    if nix::unistd::geteuid().is_root() {
        // Drops the capabilities that root's program has and does not need; an ordinary user's has none.
        arguments.push("--enable-sandbox".to_owned());
    }
    if !plan.spec.publish.is_empty() {
        arguments.push(format!("--api-socket={}", plan.orders.display()));
    }
    arguments.push(plan.socket.display().to_string());
    arguments
}

/// Asks the program to listen for a machine.
async fn publish(orders: &Path, publish: Publish) -> Result<(), StartError> {
    let mut stream = loop {
        match UnixStream::connect(orders).await {
            Ok(stream) => break stream,
            Err(error) if is_early(&error) => sleep(PAUSE).await,
            Err(error) => return Err(error.into()),
        }
    };
    let order = json!({"execute": "add_hostfwd", "arguments": {
        "proto": publish.protocol.name(),
        "host_addr": publish.host.ip().to_string(),
        "host_port": publish.host.port(),
        "guest_addr": publish.guest.ip().to_string(),
        "guest_port": publish.guest.port(),
    }});
    stream.write_all(order.to_string().as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let said: Value = serde_json::from_str(&answer).unwrap_or_default();
    if said.get("return").is_some() {
        return Ok(());
    }
    let why = said["error"]["desc"].as_str().unwrap_or(&answer);
    Err(StartError::Publish(publish, format!("slirp4netns says: {why}")))
}

/// True if nobody listens yet.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}
