//! Headers of the tunnels that UML's vector driver, QEMU and others put Ethernet frames into: L2TPv3 (RFC 3931, without
//! its control protocol) and GRE (RFC 2784, 2890).
//!
//! ```text
//! l2tpv3, UDP:     00 03 00 00 | session 4 | cookie 0, 4 or 8 | counter 0 or 4 | frame
//! l2tpv3, IP 115:                session 4 | cookie 0, 4 or 8 | counter 0 or 4 | frame
//! gre, IP 47:      flags 2 | 65 58 | key 0 or 4 | sequence 0 or 4 | frame
//! ```
//!
//! All in network order. A header that comes in must have the form of those that go out; its counter is not looked at,
//! as UML and QEMU have it: a carrier that changes the order of frames is a carrier all the same.

use fabric::DropReason;

use crate::wire::{Counter, GreSpec, L2tpv3Spec, SpecError};

/// Bytes of the longest header.
pub const LONGEST_HEADER: usize = 20;

/// IP protocol of L2TPv3.
pub const IP_L2TPV3: u8 = 115;

/// IP protocol of GRE.
pub const IP_GRE: u8 = 47;

/// First word of an L2TPv3 data message over UDP: version 3 in the low bits, no flags.
const L2TPV3_UDP: [u8; 4] = [0, 3, 0, 0];

/// In that word, what makes it another message: the flag of control messages, and the version.
const L2TPV3_FLAG: u8 = 0x80;
const L2TPV3_VERSION: u8 = 0x0f;

/// GRE: what follows is an Ethernet frame (transparent bridging).
const GRE_ETHERNET: [u8; 2] = [0x65, 0x58];
const GRE_KEY: u8 = 0x20;
const GRE_SEQUENCE: u8 = 0x10;

/// What a tunnel writes before frames and expects before them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnel {
    form: Form,
    tx: [u8; LONGEST_HEADER],
    rx: [u8; LONGEST_HEADER],
    len: usize,
    counter: Counter,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// Where the session stands, and how long the cookie behind it is.
    L2tpv3 {
        session: usize,
        cookie: usize,
    },
    Gre,
}

/// A header under construction.
#[derive(Default)]
struct Writer {
    bytes: [u8; LONGEST_HEADER],
    len: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl Tunnel {
    /// An L2TPv3 session.
    ///
    /// # Errors
    /// If the parameters do not go together.
    pub fn l2tpv3(spec: &L2tpv3Spec) -> Result<Self, SpecError> {
        let over_udp = spec.check()?;
        let session = if over_udp { L2TPV3_UDP.len() } else { 0 };
        let mut cookie_bytes = 0;
        let mut header = |number: u32, cookie: Option<u64>| {
            let mut writer = Writer::default();
            writer.put(&L2TPV3_UDP[..session]);
            writer.put(&number.to_be_bytes());
            if let Some(cookie) = cookie {
                let bytes = cookie.to_be_bytes();
                let cookie = if spec.cookie64 { &bytes[..] } else { &bytes[4..] };
                cookie_bytes = cookie.len();
                writer.put(cookie);
            }
            writer
        };
        let (tx, rx) = (
            header(spec.tx_session, spec.tx_cookie),
            header(spec.rx_session, spec.rx_cookie),
        );
        let form = Form::L2tpv3 {
            session,
            cookie: cookie_bytes,
        };
        Ok(Self::new(form, &tx, &rx, spec.counter))
    }

    /// A GRE tunnel.
    ///
    /// # Errors
    /// If the parameters do not go together.
    pub fn gre(spec: &GreSpec) -> Result<Self, SpecError> {
        spec.check()?;
        let header = |key: Option<u32>| {
            let key_flag = key.map_or(0, |_| GRE_KEY);
            let sequence_flag = if spec.sequence.is_there() { GRE_SEQUENCE } else { 0 };
            let mut writer = Writer::default();
            writer.put(&[key_flag | sequence_flag, 0]);
            writer.put(&GRE_ETHERNET);
            if let Some(key) = key {
                writer.put(&key.to_be_bytes());
            }
            writer
        };
        let (tx, rx) = (header(spec.tx_key), header(spec.rx_key));
        Ok(Self::new(Form::Gre, &tx, &rx, spec.sequence))
    }

    fn new(form: Form, tx: &Writer, rx: &Writer, counter: Counter) -> Self {
        Self {
            form,
            tx: tx.bytes,
            rx: rx.bytes,
            len: tx.len + if counter.is_there() { 4 } else { 0 },
            counter,
        }
    }

    /// Bytes of a header, the same in both directions.
    pub fn header_bytes(&self) -> usize {
        self.len
    }

    /// Writes the header of a frame. `number` is that of the frame, counted from 1; it goes out if frames are counted.
    ///
    /// # Panics
    /// If `out` is shorter than [`Tunnel::header_bytes`].
    pub fn write(&self, number: u32, out: &mut [u8]) {
        out[..self.len].copy_from_slice(&self.tx[..self.len]);
        if self.counter == Counter::Count {
            out[self.len - 4..self.len].copy_from_slice(&number.to_be_bytes());
        }
    }

    /// Checks what came before a frame, which may be less than a header.
    ///
    /// # Errors
    /// Why the frame is to be dropped.
    pub fn check(&self, header: &[u8]) -> Result<(), DropReason> {
        let Some(header) = header.get(..self.len) else {
            return Err(DropReason::Truncated);
        };
        match self.form {
            Form::Gre => {
                let fixed = if self.counter.is_there() {
                    self.len - 4
                } else {
                    self.len
                };
                same(header, &self.rx, 0..fixed, DropReason::BadKey)
            }
            Form::L2tpv3 { session, cookie } => {
                if session > 0 && (header[0] & L2TPV3_FLAG != 0 || header[1] & L2TPV3_VERSION != 3) {
                    return Err(DropReason::Malformed);
                }
                let behind = session + 4;
                same(header, &self.rx, session..behind, DropReason::ForeignSession)?;
                same(header, &self.rx, behind..behind + cookie, DropReason::BadCookie)
            }
        }
    }
}

fn same(a: &[u8], b: &[u8], part: std::ops::Range<usize>, otherwise: DropReason) -> Result<(), DropReason> {
    if a[part.clone()] == b[part] {
        Ok(())
    } else {
        Err(otherwise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Endpoint;

    fn l2tpv3(port: Option<u16>) -> L2tpv3Spec {
        let end = |ip: &str| Endpoint {
            ip: ip.parse().unwrap(),
            port,
        };
        L2tpv3Spec {
            local: end("127.0.0.1"),
            remote: end("127.0.0.2"),
            tx_session: 0x0102_0304,
            rx_session: 5,
            tx_cookie: None,
            rx_cookie: None,
            cookie64: false,
            counter: Counter::None,
        }
    }

    fn written(tunnel: &Tunnel, number: u32) -> Vec<u8> {
        let mut out = vec![0xee; tunnel.header_bytes()];
        tunnel.write(number, &mut out);
        out
    }

    #[test]
    fn l2tpv3_headers_are_as_uml_has_them() {
        let plain = Tunnel::l2tpv3(&l2tpv3(Some(1701))).unwrap();
        assert_eq!(written(&plain, 9), [0, 3, 0, 0, 1, 2, 3, 4]);
        let full = L2tpv3Spec {
            tx_cookie: Some(0x1122_3344_5566_7788),
            rx_cookie: Some(1),
            cookie64: true,
            counter: Counter::Count,
            ..l2tpv3(Some(1701))
        };
        let full = Tunnel::l2tpv3(&full).unwrap();
        assert_eq!(
            written(&full, 9),
            [
                0, 3, 0, 0, 1, 2, 3, 4, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 9
            ]
        );
        let raw = L2tpv3Spec {
            tx_cookie: Some(7),
            rx_cookie: Some(8),
            counter: Counter::Zero,
            ..l2tpv3(None)
        };
        let raw = Tunnel::l2tpv3(&raw).unwrap();
        assert_eq!(written(&raw, 9), [1, 2, 3, 4, 0, 0, 0, 7, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_wrong_with_an_l2tpv3_header_is_told() {
        let spec = L2tpv3Spec {
            tx_cookie: Some(7),
            rx_cookie: Some(8),
            counter: Counter::Count,
            ..l2tpv3(Some(1))
        };
        let tunnel = Tunnel::l2tpv3(&spec).unwrap();
        let good = [0, 3, 0, 0, 0, 0, 0, 5, 0, 0, 0, 8, 0xff, 1, 2, 3];
        assert_eq!(tunnel.check(&good), Ok(()));
        let with = |at: usize, byte: u8| {
            let mut bad = good;
            bad[at] = byte;
            tunnel.check(&bad)
        };
        assert_eq!(with(7, 6), Err(DropReason::ForeignSession));
        assert_eq!(with(11, 7), Err(DropReason::BadCookie));
        assert_eq!(with(0, 0x80), Err(DropReason::Malformed));
        assert_eq!(with(1, 2), Err(DropReason::Malformed));
        assert_eq!(with(15, 9), Ok(()), "counters are not checked");
        for length in 0..good.len() {
            assert_eq!(tunnel.check(&good[..length]), Err(DropReason::Truncated));
        }
    }

    #[test]
    fn gre_headers_are_as_uml_has_them() {
        let spec = GreSpec {
            local: "127.0.0.1".parse().unwrap(),
            remote: "127.0.0.2".parse().unwrap(),
            tx_key: Some(0x0a0b_0c0d),
            rx_key: Some(3),
            sequence: Counter::Count,
        };
        let tunnel = Tunnel::gre(&spec).unwrap();
        assert_eq!(
            written(&tunnel, 1),
            [0x30, 0, 0x65, 0x58, 0x0a, 0x0b, 0x0c, 0x0d, 0, 0, 0, 1]
        );
        let good = [0x30, 0, 0x65, 0x58, 0, 0, 0, 3, 9, 9, 9, 9];
        assert_eq!(tunnel.check(&good), Ok(()));
        assert_eq!(tunnel.check(&good[..11]), Err(DropReason::Truncated));
        for (at, byte) in [(0, 0x20), (0, 0xb0), (2, 8), (7, 4)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(tunnel.check(&bad), Err(DropReason::BadKey));
        }
        let plain = GreSpec {
            tx_key: None,
            rx_key: None,
            sequence: Counter::None,
            ..spec
        };
        let plain = Tunnel::gre(&plain).unwrap();
        assert_eq!(written(&plain, 1), [0, 0, 0x65, 0x58]);
    }
}
