//! Writes the golden captures of `pcaps/`.

#![forbid(unsafe_code)]

use std::path::Path;

fn main() -> std::io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pcaps");
    for golden in tests::golden::all() {
        let path = directory.join(golden.file);
        std::fs::write(&path, golden.bytes())?;
        println!("{}: {} frames", golden.file, golden.frames.len());
    }
    Ok(())
}
