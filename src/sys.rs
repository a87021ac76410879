//! The only door to the kernel for what nix, caps and landlock lack, and the only unsafe code.
//! Thin: a function is one call (or one family of calls), checks its result and decides nothing.
#![allow(unsafe_code, reason = "the one place for it; every block has its SAFETY note")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::hash::{BuildHasher, RandomState};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;

/// The result of a system call.
pub type Result<T> = nix::Result<T>;

/// What is behind an error of std's; EIO, where that is no call.
pub fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn check(result: c_long) -> Result<c_long> {
    Errno::result(result)
}

fn new_fd(result: c_long) -> Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// ---------------------------------------------------------------------------------------------
// What the process was started with
// ---------------------------------------------------------------------------------------------

static ARGV: AtomicPtr<*mut c_char> = AtomicPtr::new(std::ptr::null_mut());
static CLOSED_STDIO: AtomicU8 = AtomicU8::new(0);
static IGNORED_SIGPIPE: AtomicBool = AtomicBool::new(false);

/// Runs before main. Rust's runtime opens /dev/null over closed standard descriptors, hides argv and ignores
/// SIGPIPE, so what was is noted here.
extern "C" fn note_start(_argc: c_int, argv: *mut *mut c_char, _envp: *mut *mut c_char) {
    ARGV.store(argv, Ordering::Relaxed);
    let mut closed = 0;
    for fd in 0..3 {
        // SAFETY: F_GETFD takes no argument and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            closed |= 1 << fd;
        }
    }
    CLOSED_STDIO.store(closed, Ordering::Relaxed);
    // SAFETY: all-zero is a valid sigaction: no handler, an empty mask.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks; the structure is a live local.
    unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut before) };
    IGNORED_SIGPIPE.store(before.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
}

// SAFETY: .init_array is a table of functions that the C runtime calls with (argc, argv, envp) before
// main, in static glibc as well (csu/libc-start.c, call_init); `note_start` has that signature and uses
// nothing that needs initialisation.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE_START: extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) = note_start;

/// The first of the descriptors 0–2 that was closed when the process started.
pub fn closed_standard_descriptor() -> Option<u8> {
    let closed = CLOSED_STDIO.load(Ordering::Relaxed);
    (0..3).find(|fd| closed & (1 << fd) != 0)
}

/// Zeroes the argument and environment strings of this process, which /proc/PID/cmdline and
/// /proc/PID/environ show. For the sandbox's init: what the caller typed is not the command's business.
/// Only valid in a single-threaded process that will not look at its arguments or environment again.
pub fn wipe_arguments_and_environment() {
    let argv = ARGV.load(Ordering::Relaxed);
    if argv.is_null() {
        return;
    }
    let wipe_strings = |table: *mut *mut c_char| {
        let mut entry = table;
        loop {
            // SAFETY: both tables end with a null pointer (execve(2)), which ends this loop.
            let text = unsafe { *entry };
            if text.is_null() {
                return entry;
            }
            // SAFETY: an entry is a NUL-terminated string on this process's own stack.
            let length = unsafe { CStr::from_ptr(text) }.count_bytes();
            // SAFETY: the string's bytes are writable memory of this process; no other thread runs, and
            // no reference to them lives on (std copies arguments).
            unsafe { std::ptr::write_bytes(text, 0, length) };
            // SAFETY: not yet at the null that ends the table, so one further is inside it.
            entry = unsafe { entry.add(1) };
        }
    };
    let end = wipe_strings(argv);
    // SAFETY: the environment's table lies right behind argv's null on the initial stack (System V ABI);
    // std::env::set_var would replace `environ`, never this table.
    wipe_strings(unsafe { end.add(1) });
}

// ---------------------------------------------------------------------------------------------
// Processes
// ---------------------------------------------------------------------------------------------

/// Which side of a [`clone_process`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The caller, with the child's process id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// clone(2) without a stack, which is fork(2) with namespaces. glibc's fork handlers do not run, so the
/// process must be single-threaded: no lock can then be held by a thread that does not exist in the child.
///
/// # Errors
/// clone(2)'s: EPERM and ENOSPC where namespaces are refused.
pub fn clone_process(namespaces: CloneFlags) -> Result<Side> {
    let flags = c_ulong::from(namespaces.bits().cast_unsigned()) | c_ulong::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: without CLONE_VM the child has a copy of the memory, and with a null stack it goes on with
    // its copy of this one. The other arguments are unused with these flags, in any architecture's order.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok(match i32::try_from(pid) {
        Ok(0) | Err(_) => Side::Child,
        Ok(pid) => Side::Parent(Pid::from_raw(pid)),
    })
}

/// Stack of the command's process between clone and execve, bytes.
const EXEC_STACK: usize = 128 * 1024;

/// vfork(2) with a stack of its own: runs `child` in a new process that shares this one's memory, and comes
/// back when it has executed something or exited. What `child` returns is its exit status.
///
/// # Errors
/// clone(2)'s.
pub fn vfork(child: &mut dyn FnMut() -> i32) -> Result<Pid> {
    extern "C" fn enter(argument: *mut c_void) -> c_int {
        // SAFETY: `argument` is the `&mut dyn FnMut` below; the parent is stopped until this process ends
        // or executes, so the borrow is exclusive and alive.
        let child = unsafe { &mut *argument.cast::<&mut dyn FnMut() -> i32>() };
        child()
    }
    let mut child: &mut dyn FnMut() -> i32 = child;
    // Not zeroed: pages that nobody touches are not even made.
    let mut stack = Box::<[u128]>::new_uninit_slice(EXEC_STACK / size_of::<u128>());
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let argument = (&raw mut child).cast::<c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `top` is the end of 128 KiB that live until the call returns, 16-byte aligned (u128). With
    // CLONE_VFORK it returns only when the child no longer uses this memory.
    let pid = unsafe { libc::clone(enter, top, flags, argument) };
    check(c_long::from(pid))?;
    Ok(Pid::from_raw(pid))
}

/// Ends this process at once: no destructor, no exit handler, no flush.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) does not return and needs nothing.
    unsafe { libc::_exit(status) }
}

/// What wait4(2) says of an ended child.
#[derive(Debug, Clone, Copy)]
pub struct Waited {
    /// Which child.
    pub pid: Pid,
    /// The raw status, for WIFEXITED and friends.
    pub status: i32,
    /// What it and its waited-for children used.
    pub usage: libc::rusage,
}

/// wait4(2), again after EINTR. `None` if WNOHANG was given and nothing has changed.
///
/// # Errors
/// ECHILD.
pub fn wait4(pid: Option<Pid>, options: c_int) -> Result<Option<Waited>> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage: it is numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the right types.
        let waited = unsafe { libc::wait4(pid.map_or(-1, Pid::as_raw), &raw mut status, options, &raw mut usage) };
        match Errno::result(waited) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(None),
            Ok(pid) => return Ok(Some(Waited { pid: Pid::from_raw(pid), status, usage })),
        }
    }
}

/// Bytes in the list of a file's extended attributes, links not followed (listxattr(2)).
///
/// # Errors
/// ENOTSUP where there are none to be had.
pub fn attributes_length(path: &CStr) -> Result<usize> {
    // SAFETY: `path` ends with a NUL; with size 0 nothing is written.
    let length = unsafe { libc::llistxattr(path.as_ptr(), std::ptr::null_mut(), 0) };
    Errno::result(length).map(isize::cast_unsigned)
}

/// pidfd_open(2): a descriptor that can be read once the process has ended.
///
/// # Errors
/// ESRCH; ENOSYS before 5.3.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: integers only.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// pidfd_send_signal(2).
///
/// # Errors
/// ESRCH once the process has ended; EPERM; ENOSYS before 5.1.
pub fn pidfd_signal(process: &OwnedFd, signal: Signal) -> Result<()> {
    let (process, null) = (process.as_raw_fd(), std::ptr::null::<c_void>());
    // SAFETY: a null siginfo asks for the one that kill(2) would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal as c_int, null, 0) }).map(drop)
}

/// Gives SIGPIPE the disposition that the process was started with.
///
/// # Errors
/// None that sigaction(2) documents for it.
pub fn restore_sigpipe() -> Result<()> {
    // Rust's runtime has it ignored.
    if IGNORED_SIGPIPE.load(Ordering::Relaxed) { Ok(()) } else { default_disposition(Signal::SIGPIPE) }
}

/// Sets a signal's disposition to the default.
///
/// # Errors
/// EINVAL for SIGKILL and SIGSTOP.
pub fn default_disposition(signal: Signal) -> Result<()> {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }.map(drop)
}

/// Gives back the memory that this program's own code takes, for a process that will mostly sleep: pages come
/// back from the file when they are used again. No error matters: then the memory stays.
pub fn release_code() {
    unsafe extern "C" {
        // ld(1) puts both around what is mapped from the file and never written.
        static __executable_start: c_char;
        static etext: c_char;
    }
    let page = 4096;
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() & !(page - 1);
    // SAFETY: read-only pages of the program file, which can't change while it is executed (ETXTBSY): what is
    // read after the call is what was read before it (madvise(2), MADV_DONTNEED).
    unsafe {
        libc::madvise(std::ptr::with_exposed_provenance_mut(start), end.saturating_sub(start), libc::MADV_DONTNEED)
    };
}

// ---------------------------------------------------------------------------------------------
// Mounts
// ---------------------------------------------------------------------------------------------

// linux/mount.h, which libc does not have for glibc targets.
const OPEN_TREE_CLONE: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
/// Read-only.
pub const MOUNT_ATTR_RDONLY: u64 = 0x01;
/// Set-user-id bits have no effect.
pub const MOUNT_ATTR_NOSUID: u64 = 0x02;
/// Device nodes can't be opened.
pub const MOUNT_ATTR_NODEV: u64 = 0x04;
/// Nothing can be executed or mapped executable.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x08;

/// linux/mount.h, struct mount_attr.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// open_tree(2): a detached copy of the mount tree at `path`, submounts included. Follows links like any path.
///
/// # Errors
/// Those of opening `path`; EINVAL for a tree with mounts that are locked to their places; ENOSYS before 5.2.
pub fn clone_tree(path: &CStr) -> Result<OwnedFd> {
    open_tree(libc::AT_FDCWD, path, libc::AT_RECURSIVE)
}

/// open_tree(2): the same without submounts.
///
/// # Errors
/// As [`clone_tree`]; EINVAL also for a mount with others below that are locked to their places.
pub fn clone_mount(path: &CStr) -> Result<OwnedFd> {
    open_tree(libc::AT_FDCWD, path, 0)
}

/// open_tree(2) of what a descriptor names, submounts included.
///
/// # Errors
/// As [`clone_tree`].
pub fn clone_tree_at(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    open_tree(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)
}

fn open_tree(dir: RawFd, path: &CStr, flags: c_int) -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | (flags | libc::O_CLOEXEC).cast_unsigned();
    // SAFETY: `path` is NUL-terminated and outlives the call.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// move_mount(2): attaches the detached tree `from` at what `to` names.
///
/// # Errors
/// ENOTDIR or EINVAL for a file on a directory and the reverse.
pub fn attach_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to, empty) = (from.as_raw_fd(), to.as_raw_fd(), c"".as_ptr());
    // SAFETY: both paths are the same empty static string.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) }).map(drop)
}

/// mount_setattr(2) on the mount that `fd` names.
///
/// # Errors
/// EPERM when a locked attribute would be cleared; ENOSYS before 5.12.
pub fn set_mount_attributes(fd: BorrowedFd<'_>, recursive: bool, set: u64, clear: u64) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    mount_setattr(fd.as_raw_fd(), c"", flags, set, clear)
}

/// mount_setattr(2) on the mount at a path relative to the working directory.
///
/// # Errors
/// As [`set_mount_attributes`].
pub fn set_mount_attributes_here(path: &CStr, set: u64) -> Result<()> {
    mount_setattr(libc::AT_FDCWD, path, 0, set, 0)
}

fn mount_setattr(dir: RawFd, path: &CStr, flags: c_int, attr_set: u64, attr_clr: u64) -> Result<()> {
    let attributes = MountAttr { attr_set, attr_clr, propagation: 0, userns_fd: 0 };
    let (path, attributes) = (path.as_ptr(), &raw const attributes);
    // SAFETY: the path is NUL-terminated and the structure is alive, of the size that is passed.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, dir, path, flags, attributes, size_of::<MountAttr>()) })
        .map(drop)
}

/// statx(2), STATX_MNT_ID: which mount a descriptor is on. `None` before Linux 5.8.
///
/// # Errors
/// ENOSYS before 4.11.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<Option<u64>> {
    // SAFETY: all-zero is a valid statx: it is numbers only.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty static string and the structure is a live local.
    let result =
        unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_MNT_ID, &raw mut status) };
    check(c_long::from(result))?;
    Ok((status.stx_mask & libc::STATX_MNT_ID != 0).then_some(status.stx_mnt_id))
}

/// Whether open_tree(2), move_mount(2) and mount_setattr(2) are there: asked with arguments that they refuse.
pub fn has_mount_api() -> bool {
    let empty = c"".as_ptr();
    // SAFETY: a bad descriptor and an empty static path: refused before anything is touched.
    let tree = check(unsafe { libc::syscall(libc::SYS_open_tree, -1, empty, 0) });
    // SAFETY: a null structure of size 0 is refused (E2BIG or EINVAL) before it is read.
    let attributes = check(unsafe { libc::syscall(libc::SYS_mount_setattr, -1, empty, 0, 0, 0) });
    let refused = |result| matches!(result, Err(Errno::ENOSYS | Errno::EPERM));
    !refused(tree) && !refused(attributes)
}

// ---------------------------------------------------------------------------------------------
// Descriptors
// ---------------------------------------------------------------------------------------------

/// close_range(2): closes every descriptor from `first` to `last`.
///
/// # Errors
/// ENOSYS before 5.9.
pub fn close_range(first: RawFd, last: c_uint) -> Result<()> {
    // SAFETY: the callers run single-threaded before exec and own no descriptor in the range that they use again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Closes one descriptor by its number.
///
/// # Errors
/// EBADF.
pub fn close_number(fd: RawFd) -> Result<()> {
    // SAFETY: as for `close_range`.
    check(c_long::from(unsafe { libc::close(fd) })).map(drop)
}

/// flock(2), LOCK_EX at once or not at all. It is held until the file is closed, here and in copies of this process.
///
/// # Errors
/// EWOULDBLOCK where somebody else holds one.
pub fn lock_whole(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: integers only.
    check(c_long::from(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })).map(drop)
}

/// A number that nobody can know before: each of these hashers has keys of its own, from the kernel's random numbers.
pub fn unguessable() -> u64 {
    RandomState::new().hash_one(())
}

/// The name by which calls that take paths reach what a descriptor names (proc_pid_fd(5)).
pub fn proc_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// A descriptor by its number, to be used but not closed.
pub fn borrow_number(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: a number that is not open makes calls fail with EBADF, which is no memory error; the callers
    // pass the standard descriptors, or numbers that the user named and that nothing here closes.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// dup3-like copy onto a standard descriptor (0–2).
///
/// # Errors
/// dup2(2)'s.
pub fn replace_standard(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: dup2 on plain numbers; descriptors 0–2 are owned by no Rust object.
    check(c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

// ---------------------------------------------------------------------------------------------
// Privileges and confinement
// ---------------------------------------------------------------------------------------------

/// PR_CAPBSET_DROP by number, which covers capabilities newer than crate caps. `false`: the kernel has no
/// capability of that number.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn drop_bounding(capability: u8) -> Result<bool> {
    // SAFETY: prctl with integer arguments.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability), 0, 0, 0) };
    match check(c_long::from(result)) {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// PR_CAP_AMBIENT_RAISE by number.
///
/// # Errors
/// EPERM if it is not permitted and inheritable; EINVAL if the kernel has no such capability.
pub fn raise_ambient(capability: u8) -> Result<()> {
    let raise = c_ulong::from(libc::PR_CAP_AMBIENT_RAISE.cast_unsigned());
    // SAFETY: prctl with integer arguments.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, c_ulong::from(capability), 0, 0) };
    check(c_long::from(result)).map(drop)
}

/// PR_CAPBSET_READ: whether a capability is in the bounding set; `None` if the kernel does not know it.
///
/// # Errors
/// None that prctl(2) documents but EINVAL.
pub fn in_bounding(capability: u8) -> Result<Option<bool>> {
    // SAFETY: prctl with integer arguments.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_READ, c_ulong::from(capability), 0, 0, 0) };
    match check(c_long::from(result)) {
        Ok(held) => Ok(Some(held == 1)),
        Err(Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// seccomp(2), SECCOMP_SET_MODE_FILTER, with SECCOMP_FILTER_FLAG_*.
///
/// # Errors
/// EINVAL for a program that the kernel's checker refuses, or a flag that it doesn't know; EACCES without no_new_privs.
pub fn install_filter(instructions: &[libc::sock_filter], flags: c_ulong) -> Result<()> {
    set_filter(instructions, flags).map(drop)
}

/// The same with SECCOMP_FILTER_FLAG_NEW_LISTENER: the descriptor on which the filter asks.
///
/// # Errors
/// Also EBUSY where a filter around us has a listener already.
pub fn install_asking_filter(instructions: &[libc::sock_filter], flags: c_ulong) -> Result<OwnedFd> {
    new_fd(set_filter(instructions, flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?)
}

/// prctl(2), PR_SET_SECCOMP: where a filter refuses seccomp(2).
///
/// # Errors
/// As [`install_filter`].
pub fn install_filter_by_prctl(instructions: &[libc::sock_filter]) -> Result<()> {
    with_program(instructions, |program| {
        // SAFETY: the program is alive; the kernel copies and does not write it.
        let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, c_ulong::from(libc::SECCOMP_MODE_FILTER), program) };
        check(c_long::from(result)).map(drop)
    })
}

fn set_filter(instructions: &[libc::sock_filter], flags: c_ulong) -> Result<c_long> {
    with_program(instructions, |program| {
        // SAFETY: the program is alive; the kernel copies and does not write it.
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) })
    })
}

/// A program as the kernel takes it, alive for the call.
fn with_program<T>(
    instructions: &[libc::sock_filter],
    install: impl FnOnce(*const libc::sock_fprog) -> Result<T>,
) -> Result<T> {
    let len = u16::try_from(instructions.len()).map_err(|_| Errno::EINVAL)?;
    install(&libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() })
}

/// A call that a filter asks about (struct seccomp_notif).
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Its cookie.
    pub id: u64,
    /// Who calls, in this pid namespace.
    pub pid: u32,
    /// The system call's number.
    pub nr: i32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// The next call that a filter asks about (seccomp_unotify(2), SECCOMP_IOCTL_NOTIF_RECV).
///
/// # Errors
/// ENOENT if the caller ended meanwhile.
pub fn next_question(listener: BorrowedFd<'_>) -> Result<Question> {
    // SAFETY: integers and arrays of them, for which zero is a value; the kernel wants them zero.
    let mut question: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request's number carries the size of the structure that the kernel fills.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question) };
    check(c_long::from(result))?;
    let libc::seccomp_notif { id, pid, data, .. } = question;
    Ok(Question { id, pid, nr: data.nr, args: data.args })
}

/// Answers: the call goes on as it is, or fails (seccomp_unotify(2), SECCOMP_IOCTL_NOTIF_SEND; Linux 5.5).
///
/// # Errors
/// ENOENT if the caller ended meanwhile.
pub fn answer_question(listener: BorrowedFd<'_>, id: u64, refusal: Option<Errno>) -> Result<()> {
    // The flag is 1 and fits.
    let go_on = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(0);
    let (error, flags) = refusal.map_or((0, go_on), |errno| (-(errno as i32), 0));
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the request's number carries the size of the structure that the kernel reads.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    check(c_long::from(result)).map(drop)
}

/// What [`receive_with_descriptor`] got.
#[derive(Debug)]
pub struct Came {
    /// Bytes of the record.
    pub length: usize,
    /// A descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
    /// Who sent it, in this pid namespace, where the socket has SO_PASSCRED.
    pub sender: Option<Pid>,
}

/// recvmsg(2) of one record, and of what may come with it.
///
/// # Errors
/// As recvmsg(2).
pub fn receive_with_descriptor(socket: BorrowedFd<'_>, record: &mut [u8]) -> Result<Came> {
    let mut control = nix::cmsg_space!(RawFd, libc::ucred);
    let mut parts = [IoSliceMut::new(record)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut came = Came { length: received.bytes, descriptor: None, sender: None };
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(numbers) => {
                for number in numbers {
                    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
                    came.descriptor = Some(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
            ControlMessageOwned::ScmCredentials(sender) => came.sender = Some(Pid::from_raw(sender.pid())),
            _ => {}
        }
    }
    Ok(came)
}

/// keyctl(2), KEYCTL_JOIN_SESSION_KEYRING: a new anonymous session keyring. `false`: the kernel has no keyrings.
///
/// # Errors
/// EPERM where a filter around us refuses keyctl.
pub fn join_new_session_keyring() -> Result<bool> {
    // SAFETY: a null name asks for an anonymous keyring.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0) }) {
        Ok(_) => Ok(true),
        Err(Errno::ENOSYS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The Landlock ABI of the kernel, landlock_create_ruleset(2).
///
/// # Errors
/// ENOSYS: not built in. EOPNOTSUPP: built in and not enabled at boot.
pub fn landlock_abi() -> Result<i32> {
    const LANDLOCK_CREATE_RULESET_VERSION: c_uint = 1;
    let null = std::ptr::null::<c_void>();
    // SAFETY: with this flag the attribute must be null and of size 0.
    let abi = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, null, 0_usize, LANDLOCK_CREATE_RULESET_VERSION)
    })?;
    i32::try_from(abi).map_err(|_| Errno::EOVERFLOW)
}

/// Brings the loopback interface of this network namespace up; the kernel then gives it 127.0.0.1/8 and ::1
/// (net/ipv4/devinet.c, inetdev_event).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN over the namespace.
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: all-zero is a valid ifreq: an empty name and numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is.
    check(c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })).map(drop)
}

/// fnmatch(3) without flags for path or period, as Python's fnmatch: `*` matches `/` too. No escapes.
pub fn fnmatch(pattern: &str, text: &OsStr) -> bool {
    let (Ok(pattern), Ok(text)) = (CString::new(pattern), CString::new(text.as_bytes())) else {
        return false;
    };
    // SAFETY: both strings are NUL-terminated and alive.
    unsafe { libc::fnmatch(pattern.as_ptr(), text.as_ptr(), libc::FNM_NOESCAPE) == 0 }
}

#[cfg(test)]
mod tests;
