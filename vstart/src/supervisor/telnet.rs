//! As much of telnet (RFC 854, 857, 858) as a console on a TCP port needs: the client's terminal is put into
//! character mode, and what the client negotiates is kept from the guest.

/// Sent first: we echo (WILL ECHO), and there are no go-aheads (WILL SUPPRESS-GO-AHEAD).
pub(crate) const GREETING: [u8; 6] = [IAC, WILL, 1, IAC, WILL, 3];

const IAC: u8 = 255;
const SE: u8 = 240;
const SB: u8 = 250;
const WILL: u8 = 251;
const DONT: u8 = 254;

/// Where in a command the stream stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Data,
    Command,
    Option,
    Parameters,
    ParametersCommand,
    AfterReturn,
}

/// Takes the commands out of what a client sends.
#[derive(Debug, Default)]
pub(crate) struct Filter(State);

impl Filter {
    /// What of `bytes` was typed.
    pub(crate) fn typed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut typed = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.0 = match (self.0, byte) {
                (State::Data | State::AfterReturn, IAC) => State::Command,
                // The return key is CR LF or CR NUL on the wire.
                (State::AfterReturn, 0 | b'\n') => State::Data,
                (State::Data | State::AfterReturn, byte) => {
                    typed.push(byte);
                    if byte == b'\r' {
                        State::AfterReturn
                    } else {
                        State::Data
                    }
                }
                (State::Command, IAC) => {
                    typed.push(IAC);
                    State::Data
                }
                (State::Command, SB) => State::Parameters,
                (State::Command, WILL..=DONT) => State::Option,
                (State::Command | State::Option, _) => State::Data,
                (State::Parameters, IAC) => State::ParametersCommand,
                (State::ParametersCommand, SE) => State::Data,
                (State::Parameters | State::ParametersCommand, _) => State::Parameters,
            };
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_typed_comes_through() {
        let stream = [
            &[IAC, 253, 1, IAC, 253, 3][..],
            b"ls\r\n",
            &[IAC, SB, 31, 0, 80, 0, 24, IAC, SE],
            b"\r\0x",
            &[IAC, IAC, IAC, 241],
            b"y",
        ]
        .concat();
        let expected = [&b"ls\r\rx"[..], &[IAC], b"y"].concat();
        assert_eq!(Filter::default().typed(&stream), expected);
        let mut filter = Filter::default();
        let piecewise: Vec<u8> = stream.iter().flat_map(|byte| filter.typed(&[*byte])).collect();
        assert_eq!(piecewise, expected);
    }
}
