//! What is asked of the kernel when the mount begins.

use fuser::{InitFlags, KernelConfig};

/// The largest write the kernel sends at once, in bytes: what its page limit allows.
const MAX_WRITE: u32 = 1 << 20;

/// Asks for what the kernel offers of it. With `acl`, it honours the source's ACLs; `stacked` says that the source lies on
/// an overlay. `true`: it passes reads and writes through to lower files.
pub fn ask(config: &mut KernelConfig, acl: bool, stacked: bool) -> bool {
    let wanted = [
        // a writer's O_TRUNC must not truncate the pages of the generation it opens
        (true, InitFlags::FUSE_ATOMIC_O_TRUNC),
        (true, InitFlags::FUSE_AUTO_INVAL_DATA),
        (
            true,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
        ),
        (true, InitFlags::FUSE_PARALLEL_DIROPS),
        (true, InitFlags::FUSE_ASYNC_DIO),
        // a node that the kernel has forgotten cannot be found again by its number: better no file
        // handles than ones that go stale
        (true, InitFlags::FUSE_NO_EXPORT_SUPPORT),
        // the umask gives way to a directory's default ACL, which the daemon can see
        (true, InitFlags::FUSE_DONT_MASK),
        // measured: without it the kernel asks for security.capability before every write
        (true, InitFlags::FUSE_HANDLE_KILLPRIV_V2),
        // locks are the source's too, and a controller's are the distributed ones
        (
            true,
            InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS,
        ),
        (acl, InitFlags::FUSE_POSIX_ACL),
        (
            rustix::process::geteuid().is_root(),
            InitFlags::FUSE_PASSTHROUGH,
        ),
    ];
    let mut has_passthrough = false;
    for (_, flags) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        if config.add_capabilities(flags).is_err() {
            tracing::debug!(?flags, "not offered by this kernel");
        } else if flags == InitFlags::FUSE_PASSTHROUGH {
            let depth = if stacked { 2 } else { 1 };
            has_passthrough = config.set_max_stack_depth(depth).is_ok();
        }
    }
    // smaller limits than ours are the kernel's good right
    let _ = config.set_max_write(MAX_WRITE);
    has_passthrough
}
