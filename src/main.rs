//! The binary: all of it is the library's.

use std::process::ExitCode;

use nodbfs::mount::Built;

struct Unbuilt;

impl fuser::Filesystem for Unbuilt {}

fn main() -> ExitCode {
    nodbfs::cli::run::<Unbuilt, _>(|_, _| -> anyhow::Result<Built<Unbuilt>> {
        anyhow::bail!("no file system yet")
    })
}
