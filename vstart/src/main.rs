//! The v* commands, one program under many names.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    vstart::commands::main()
}
