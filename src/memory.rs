//! Memory that is no longer needed goes back to the system.

/// The allocator keeps what was freed; this makes it give up whole pages. Takes milliseconds, so it is for after a crowd has left.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no argument can be wrong, and the allocator locks itself against other threads
    unsafe {
        libc::malloc_trim(0);
    }
}
