//! Capture filters: programs of the classic BPF machine, checked once and run once a frame.
//!
//! The machine is that of bpf(4): an accumulator, an index register, 16 words of scratch memory, jumps forward only.
//! A program is checked before it may run, so that it cannot loop, cannot leave its frame or its memory, and always
//! ends; a load from beyond the end of the frame rejects the frame, as everywhere.

use std::fmt;

/// One instruction, as libpcap's `bpf_insn` and the kernel's `sock_filter` have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// Operation, with its size, mode and source.
    pub code: u16,
    /// Instructions to skip if the condition holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// A checked program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter(Box<[Instruction]>);

/// Why instructions are no program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterError {
    /// There are none, or more than [`MOST_INSTRUCTIONS`].
    Length(usize),
    /// The instruction at this position does not exist, or its operand is out of range.
    Instruction(usize),
    /// The last instruction is no return.
    NoReturn,
}

/// No program may be longer: the kernel's own limit (`BPF_MAXINSNS`).
pub const MOST_INSTRUCTIONS: usize = 4096;

const MEMORY_WORDS: usize = 16;

impl Filter {
    /// Checks a program.
    ///
    /// # Errors
    /// When it could do anything but come to an end.
    pub fn new(instructions: Vec<Instruction>) -> Result<Self, FilterError> {
        let length = instructions.len();
        if !(1..=MOST_INSTRUCTIONS).contains(&length) {
            return Err(FilterError::Length(length));
        }
        for (at, instruction) in instructions.iter().enumerate() {
            if !is_sound(*instruction, length - at - 1) {
                return Err(FilterError::Instruction(at));
            }
        }
        match instructions.last() {
            Some(last) if class(last.code) == RET => Ok(Self(instructions.into_boxed_slice())),
            _ => Err(FilterError::NoReturn),
        }
    }

    /// True if the program accepts a frame of which `frame` is the part that is there, and `wire_len` the length.
    pub fn accepts(&self, frame: &[u8], wire_len: usize) -> bool {
        let wire_len = u32::try_from(wire_len).unwrap_or(u32::MAX);
        self.run(frame, wire_len).unwrap_or(0) != 0
    }

    /// The value the program returns; `None` if it reaches beyond the frame or divides by zero.
    fn run(&self, frame: &[u8], wire_len: u32) -> Option<u32> {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; MEMORY_WORDS];
        let mut at = 0;
        while let Some(&Instruction { code, jt, jf, k }) = self.0.get(at) {
            at += 1;
            match class(code) {
                LD => {
                    a = match code & 0xe0 {
                        IMM => k,
                        ABS => load(frame, k, code)?,
                        IND => load(frame, x.checked_add(k)?, code)?,
                        MEM => memory[k as usize % MEMORY_WORDS],
                        _ => wire_len,
                    }
                }
                LDX => {
                    x = match code & 0xe0 {
                        IMM => k,
                        MEM => memory[k as usize % MEMORY_WORDS],
                        MSH => 4 * (load(frame, k, BYTE)? & 0xf),
                        _ => wire_len,
                    }
                }
                ST => memory[k as usize % MEMORY_WORDS] = a,
                STX => memory[k as usize % MEMORY_WORDS] = x,
                ALU => a = compute(code, a, if code & SOURCE_X == 0 { k } else { x })?,
                JMP => {
                    let operand = if code & SOURCE_X == 0 { k } else { x };
                    at += match code & 0xf0 {
                        JA => k as usize,
                        JEQ => usize::from(if a == operand { jt } else { jf }),
                        JGT => usize::from(if a > operand { jt } else { jf }),
                        JGE => usize::from(if a >= operand { jt } else { jf }),
                        _ => usize::from(if a & operand != 0 { jt } else { jf }),
                    };
                }
                RET => return Some(if code & 0x18 == RETURN_A { a } else { k }),
                _ if code & 0xf8 == TAX => x = a,
                _ => a = x,
            }
        }
        None
    }
}

/// Reads a number of the frame in network order.
fn load(frame: &[u8], at: u32, code: u16) -> Option<u32> {
    let rest = frame.get(at as usize..)?;
    match code & 0x18 {
        WORD => rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
        HALF => rest
            .first_chunk()
            .map(|bytes| u32::from(u16::from_be_bytes(*bytes))),
        _ => rest.first().map(|&byte| u32::from(byte)),
    }
}

fn compute(code: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        ADD => a.wrapping_add(operand),
        SUB => a.wrapping_sub(operand),
        MUL => a.wrapping_mul(operand),
        DIV => a.checked_div(operand)?,
        MOD => a.checked_rem(operand)?,
        OR => a | operand,
        AND => a & operand,
        XOR => a ^ operand,
        LSH => a.checked_shl(operand).unwrap_or(0),
        RSH => a.checked_shr(operand).unwrap_or(0),
        _ => a.wrapping_neg(),
    })
}

/// True if an instruction exists and stays inside; `after` instructions follow it.
fn is_sound(Instruction { code, jt, jf, k }: Instruction, after: usize) -> bool {
    let memory = (k as usize) < MEMORY_WORDS;
    match class(code) {
        LD => match code & 0xe0 {
            ABS | IND => matches!(code & 0x18, WORD | HALF | BYTE),
            MEM => memory,
            mode => matches!(mode, IMM | LEN),
        },
        LDX => match code & 0xe0 {
            MEM => memory,
            MSH => code & 0x18 == BYTE,
            mode => matches!(mode, IMM | LEN),
        },
        ST | STX => memory,
        ALU => match code & 0xf0 {
            DIV | MOD => code & SOURCE_X != 0 || k != 0,
            operation => operation <= XOR,
        },
        JMP => match code & 0xf0 {
            JA => (k as usize) < after,
            JEQ | JGT | JGE | JSET => usize::from(jt.max(jf)) < after,
            _ => false,
        },
        RET => matches!(code & 0x18, 0 | RETURN_A),
        _ => matches!(code & 0xf8, TAX | TXA),
    }
}

const fn class(code: u16) -> u16 {
    code & 7
}

// The encoding of bpf(4).
const LD: u16 = 0;
const LDX: u16 = 1;
const ST: u16 = 2;
const STX: u16 = 3;
const ALU: u16 = 4;
const JMP: u16 = 5;
const RET: u16 = 6;
const WORD: u16 = 0x00;
const HALF: u16 = 0x08;
const BYTE: u16 = 0x10;
const IMM: u16 = 0x00;
const ABS: u16 = 0x20;
const IND: u16 = 0x40;
const MEM: u16 = 0x60;
const LEN: u16 = 0x80;
const MSH: u16 = 0xa0;
const ADD: u16 = 0x00;
const SUB: u16 = 0x10;
const MUL: u16 = 0x20;
const DIV: u16 = 0x30;
const OR: u16 = 0x40;
const AND: u16 = 0x50;
const LSH: u16 = 0x60;
const RSH: u16 = 0x70;
const MOD: u16 = 0x90;
const XOR: u16 = 0xa0;
const JA: u16 = 0x00;
const JEQ: u16 = 0x10;
const JGT: u16 = 0x20;
const JGE: u16 = 0x30;
const JSET: u16 = 0x40;
const SOURCE_X: u16 = 0x08;
const RETURN_A: u16 = 0x10;
const TAX: u16 = 0x00;
const TXA: u16 = 0x80;

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(
                f,
                "a filter has 1 to {MOST_INSTRUCTIONS} instructions, this one {length}"
            ),
            Self::Instruction(at) => write!(f, "instruction {at} of the filter is not valid"),
            Self::NoReturn => f.write_str("the filter does not end with a return"),
        }
    }
}

impl std::error::Error for FilterError {}

#[cfg(test)]
mod tests {
    use super::*;

    const fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    /// `ip proto 1`, as tcpdump -d prints it.
    fn icmp() -> Filter {
        Filter::new(vec![
            op(0x28, 0, 0, 12),
            op(0x15, 0, 3, 0x800),
            op(0x30, 0, 0, 23),
            op(0x15, 0, 1, 1),
            op(0x06, 0, 0, 262_144),
            op(0x06, 0, 0, 0),
        ])
        .unwrap()
    }

    #[test]
    fn a_real_program_decides() {
        let mut frame = [0; 60];
        frame[12] = 8;
        frame[23] = 1;
        assert!(icmp().accepts(&frame, 60));
        frame[23] = 6;
        assert!(!icmp().accepts(&frame, 60));
        assert!(!icmp().accepts(&frame[..20], 60), "beyond the end");
    }

    #[test]
    fn the_length_is_that_on_the_wire() {
        let longer = Filter::new(vec![
            op(0x80, 0, 0, 0),
            op(0x35, 0, 1, 100),
            op(0x06, 0, 0, 1),
            op(0x06, 0, 0, 0),
        ])
        .unwrap();
        assert!(longer.accepts(&[0; 60], 100));
        assert!(!longer.accepts(&[0; 60], 99));
    }

    #[test]
    fn arithmetic_and_memory() {
        // ((len * 3) % 7) ^ 5, by way of memory and the index register.
        let program = |last: u32| {
            Filter::new(vec![
                op(0x80, 0, 0, 0),
                op(0x24, 0, 0, 3),
                op(0x94, 0, 0, 7),
                op(0xa4, 0, 0, 5),
                op(0x02, 0, 0, 15),
                op(0x61, 0, 0, 15),
                op(0x87, 0, 0, 0),
                op(0x15, 0, 1, last),
                op(0x06, 0, 0, 1),
                op(0x06, 0, 0, 0),
            ])
            .unwrap()
        };
        assert!(program((10 * 3 % 7) ^ 5).accepts(&[], 10));
        assert!(!program(9).accepts(&[], 10));
    }

    #[test]
    fn what_could_go_astray_is_refused() {
        let end = op(0x06, 0, 0, 0);
        assert_eq!(Filter::new(vec![]), Err(FilterError::Length(0)));
        assert_eq!(Filter::new(vec![end; 4097]), Err(FilterError::Length(4097)));
        assert_eq!(Filter::new(vec![op(0x28, 0, 0, 12)]), Err(FilterError::NoReturn));
        for wrong in [
            op(0x05, 0, 0, 1),
            op(0x15, 1, 0, 0),
            op(0x15, 0, 1, 0),
            op(0x02, 0, 0, 16),
            op(0x60, 0, 0, 16),
            op(0x34, 0, 0, 0),
            op(0xb4, 0, 0, 0),
            op(0x55, 0, 0, 0),
            op(0x38, 0, 0, 0),
            op(0xa1, 0, 0, 0),
            op(0x0e, 0, 0, 0),
            op(0x47, 0, 0, 0),
        ] {
            assert_eq!(
                Filter::new(vec![wrong, end]),
                Err(FilterError::Instruction(0)),
                "{wrong:?}"
            );
        }
        let divide = Filter::new(vec![op(0x3c, 0, 0, 0), op(0x06, 0, 0, 1)]).unwrap();
        assert!(!divide.accepts(&[], 0), "division by an index register of zero");
    }
}
