//! The program `tapctl`: what it does is in the library, so that its manual page can be made from its command line.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    tapctl::main()
}
