//! Errno numbers and their names.

use nix::errno::Errno;

/// Largest errno that a filter can return (include/linux/err.h, MAX_ERRNO; greater ones are cut to it).
pub(super) const MOST: u16 = 4095;

/// Numbers that have names are below this (asm-generic/errno.h ends with 133).
const END: u16 = 140;

/// `ENOSYS` for 38; `None` for a number without a name.
pub(super) fn name(number: u16) -> Option<String> {
    match Errno::from_raw(number.into()) {
        Errno::UnknownErrno => None,
        errno => Some(format!("{errno:?}")),
    }
}

/// 38 for `ENOSYS`.
pub(super) fn number(wanted: &str) -> Option<u16> {
    (1..END).find(|number| name(*number).is_some_and(|name| name == wanted))
}
