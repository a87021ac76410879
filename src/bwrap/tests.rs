//! bubblewrap's texts, the way through `render`, and what each option does to a policy.

use std::ffi::OsString;

use proptest::prelude::*;

use super::*;
use crate::policy::{Access, CapabilityEdit, CapabilityName, FsOp, Network, OverlayTop, Policy, SandboxPath, Workdir};

fn complaint(line: &str) -> String {
    let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    lex(&words).unwrap_err().to_string()
}

fn applied(args: &[&str]) -> Result<Policy, BwrapError> {
    let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
    let mut policy = Policy::new("test");
    apply_additional_args(&args, &mut policy).map(|()| policy)
}

fn at(path: &str) -> SandboxPath {
    SandboxPath::new(path).unwrap()
}

#[test]
fn complaints_are_bubblewraps_own() {
    assert_eq!(complaint("--foo"), "Unknown option --foo");
    assert_eq!(complaint("--chdir=/"), "Unknown option --chdir=/");
    assert_eq!(complaint("--bind /a"), "--bind takes two arguments");
    assert_eq!(complaint("--ro-bind-try /a"), "--ro-bind-try takes two arguments");
    assert_eq!(complaint("--chdir"), "--chdir takes one argument");
    assert_eq!(complaint("--dir"), "--dir takes an argument");
    assert_eq!(complaint("--seccomp x"), "Invalid fd: x");
    assert_eq!(complaint("--seccomp -1"), "Invalid fd: -1");
    assert_eq!(complaint("--uid x"), "Invalid uid: x");
    assert_eq!(complaint("--perms 0700 --bind a b"), "--perms must be followed by an option that creates a file");
    assert_eq!(complaint("--perms 0700 --perms 0700"), "--perms given twice for the same action");
    assert_eq!(complaint("--size 10 --dir /a"), "--size must be followed by --tmpfs");
    assert_eq!(complaint("--size 0 --tmpfs /a"), "--size takes a non-zero number of bytes");
    assert_eq!(complaint("--argv0 a --argv0 b"), "--argv0 used multiple times");
    assert_eq!(lex(&vec!["x".into(); 9001]).unwrap_err().to_string(), "Exceeded maximum number of arguments 9000");
}

#[test]
fn the_first_word_that_is_no_option_begins_the_command() {
    let lexed = lex(&["--new-session", "ls", "--dir"].map(OsString::from)).unwrap();
    assert_eq!(lexed.command, ["ls", "--dir"]);
    let lexed = lex(&["--perms", "0700", "--", "--dir"].map(OsString::from)).unwrap();
    assert_eq!((lexed.flags.len(), lexed.command), (0, vec!["--dir".into()]));
}

#[test]
fn the_options_of_0_3s_profiles_apply_in_order() {
    let args = ["--hostname", "sandbox", "--chdir", "/home/agent", "--dir", "/var/cache", "--dir", "/var/log"];
    let policy = applied(&args).unwrap();
    assert_eq!(policy.hostname.as_deref(), Some("sandbox"));
    assert_eq!(policy.workdir, Workdir::Path(at("/home/agent")));
    let dir = |path| FsOp::Dir { target: at(path), mode: 0o755 };
    assert_eq!(policy.fs, [dir("/var/cache"), dir("/var/log")]);
}

#[test]
fn binds_and_tmpfs_keep_their_modifiers() {
    let policy = applied(&["--ro-bind-try", "/a", "b", "--perms", "0700", "--size", "0x10", "--tmpfs", "/t"]).unwrap();
    let bind = FsOp::Bind { source: "/a".into(), target: at("/b"), access: Access::ReadOnly, optional: true };
    let tmpfs = FsOp::Tmpfs { target: at("/t"), mode: 0o700, size: Some(16), optional: false };
    assert_eq!(policy.fs, [bind, tmpfs]);
}

#[test]
fn the_network_follows_the_last_word_and_never_gets_laxer_by_unsharing() {
    assert_eq!(applied(&["--share-net"]).unwrap().network, Network::Host);
    assert_eq!(applied(&["--share-net", "--unshare-all"]).unwrap().network, Network::Loopback);
    assert_eq!(applied(&["--unshare-net"]).unwrap().network, Network::None);
}

#[test]
fn what_a_profile_cannot_mean_is_refused_by_name() {
    for args in [
        &["--cap-add", "CAP_NET_RAW"][..],
        &["--seccomp", "3"],
        &["--bind-fd", "3", "/x"],
        &["--as-pid-1"],
        &["--uid", "0"],
        &["--overlay-src", "/a", "--tmp-overlay", "/b"],
        &["--bind", "relative", "/x"],
        &["--bind", "/a", "/x/../y"],
        &["--help"],
    ] {
        let text = applied(args).unwrap_err().to_string();
        assert!(args.iter().any(|word| word.starts_with("--") && text.contains(word)), "{text}");
    }
    assert!(applied(&["ls"]).unwrap_err().to_string().contains("\"ls\" is not an option"));
}

/// What the program makes of a line; `--args 7` brings these words.
fn program(line: &str, file: &str) -> Result<Policy, String> {
    let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    let mut read = |fd| if fd == 7 { Ok(file.replace(' ', "\0").into_bytes()) } else { Err("closed".to_owned()) };
    let (lexed, result) = lex_program(&words, &mut read);
    result.map_err(|error| error.to_string())?;
    let caller = Caller { uid: 1000, gid: 1000, cwd: Some("/home/me".into()), ..Caller::default() };
    policy(&lexed, &caller, Vec::new()).map_err(|error| error.to_string())
}

#[test]
fn a_command_line_leaves_open_what_it_does_not_name() {
    let policy = program("--ro-bind / / ls", "").unwrap();
    assert_eq!(policy.network, Network::Host);
    assert!(policy.environment.inherit && policy.namespaces.user && !policy.namespaces.pid);
    assert_eq!(policy.command, ["ls"]);
}

#[test]
fn relative_paths_are_from_the_callers_directory_outside_and_from_the_root_inside() {
    let policy = program("--bind a/b ../c ls", "").unwrap();
    let target = SandboxPath::traversing("/../c").unwrap();
    let bind = FsOp::Bind { source: "/home/me/a/b".into(), target, access: Access::ReadWrite, optional: false };
    assert_eq!(policy.fs, [bind]);
}

#[test]
fn an_arguments_file_stands_in_the_place_of_its_option() {
    let made = |path| FsOp::Dir { target: at(path), mode: 0o755 };
    let policy = program("--dir /a --args 7 --dir /c ls", "--dir /b -- ignored").unwrap();
    assert_eq!(policy.fs, [made("/a"), made("/b"), made("/c")]);
    assert_eq!(policy.command, ["ls"]);
    let perms = program("--perms 0700 --args 7 ls", "--dir /b").unwrap();
    assert_eq!(perms.fs, [FsOp::Dir { target: at("/b"), mode: 0o700 }]);
    for (file, complaint) in [
        ("--args 7", "--args not supported in arguments file"),
        ("--perms 0700", "--perms must be followed by an option that creates a file"),
        ("--bind x", "--bind takes two arguments"),
    ] {
        assert_eq!(program("--args 7 ls", file).unwrap_err(), complaint);
    }
    assert_eq!(program("--args 8 ls", "").unwrap_err(), "Can't read --args data: closed");
}

#[test]
fn options_that_do_not_go_together_are_refused_in_bubblewraps_words() {
    for (line, complaint) in [
        ("--as-pid-1 ls", "Specifying --as-pid-1 requires --unshare-pid"),
        ("--userns 3 --unshare-user ls", "--userns is not compatible with --unshare-user"),
        ("--userns 3 --unshare-all ls", "--userns is not compatible with --unshare-user-try"),
        ("--disable-userns ls", "--disable-userns requires --unshare-user"),
        ("--hostname h ls", "Specifying --hostname requires --unshare-uts"),
        ("--unshare-user --userns-block-fd 3 ls", "--userns-block-fd requires --info-fd"),
        ("--setenv a=b c ls", "setenv failed"),
        ("--exec-label x ls", "labeling not supported on this system"),
        ("--cap-add NET_RAW ls", "unknown cap: NET_RAW"),
        ("--debug-opt=x ls", "Unknown --debug-opt value: x"),
    ] {
        assert_eq!(program(line, "").unwrap_err(), complaint);
    }
    let capabilities = program("--cap-drop ALL --cap-add cap_net_raw --cap-add 5 ls", "").unwrap().bubblewrap.unwrap();
    let added = |number| CapabilityEdit::Add(CapabilityName::Number(number));
    assert_eq!(capabilities.capabilities, [CapabilityEdit::Drop(CapabilityName::All), added(13), added(5)]);
}

#[test]
fn the_options_of_which_the_last_counts_are_named_each_time_they_come_again() {
    let words = ["--chdir", "/", "--uid", "0", "--chdir", "/", "--chdir", "/a", "ls"].map(OsString::from);
    let lexed = lex(&words).unwrap();
    assert_eq!(repeated(&lexed).collect::<Vec<_>>(), [(2, "--chdir"), (3, "--chdir")]);
}

#[test]
fn help_names_every_option() {
    let text = usage("bwrap");
    let words = Switch::ALL.iter().map(|option| option.word());
    let words =
        words.chain(Text::ALL.iter().map(|option| option.word())).chain(Fd::ALL.iter().map(|option| option.word()));
    for word in words.chain(BindAccess::ALL.iter().map(|option| option.word())) {
        assert!(text.contains(&format!("    {word} ")), "{word}");
    }
}

fn word() -> impl Strategy<Value = OsString> {
    "[a-z/ ]{1,6}".prop_map(OsString::from)
}

fn flags() -> impl Strategy<Value = Flag> {
    let perms = || proptest::option::of(0_u32..0o7777);
    let fd = || 0..i32::MAX;
    prop_oneof![
        prop::sample::select(Switch::ALL).prop_map(Flag::Switch),
        (prop::sample::select(Text::ALL), word()).prop_map(|(text, argument)| Flag::Text(text, argument)),
        (prop::sample::select(Fd::ALL), fd()).prop_map(|(option, fd)| Flag::Fd(option, fd)),
        (0..i32::MAX.cast_unsigned()).prop_map(Flag::Uid),
        (0..i32::MAX.cast_unsigned()).prop_map(Flag::Gid),
        (word(), word()).prop_map(|(name, value)| Flag::SetEnv(name, value)),
        (prop::sample::select(BindAccess::ALL), any::<bool>(), word(), word())
            .prop_map(|(access, optional, source, dest)| Flag::Bind { access, optional, source, dest }),
        (any::<bool>(), fd(), word()).prop_map(|(read_only, fd, dest)| Flag::BindFd { read_only, fd, dest }),
        (word(), perms(), proptest::option::of(1..u64::MAX / 2)).prop_map(|(dest, perms, size)| Flag::Tmpfs {
            dest,
            perms,
            size
        }),
        (word(), perms()).prop_map(|(dest, perms)| Flag::Dir { dest, perms }),
        (prop::sample::select(DataUse::ALL), fd(), word(), perms()).prop_map(|(how, fd, dest, perms)| Flag::Data {
            how,
            fd,
            dest,
            perms
        }),
        (word(), word()).prop_map(|(text, dest)| Flag::Symlink { text, dest }),
        Just(Flag::WalkByHand),
        (0_u32..0o7777, word()).prop_map(|(mode, path)| Flag::Chmod { mode, path }),
        (proptest::collection::vec(word(), 2..4), word(), word(), word(), 0..3).prop_map(
            |(sources, upper, work, dest, which)| {
                let top = match which {
                    0 => OverlayTop::Host { upper: upper.into(), work: work.into() },
                    1 => OverlayTop::Tmpfs,
                    _ => OverlayTop::Nothing,
                };
                Flag::Overlay { sources, top, dest }
            }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_list_of_flags_survives_the_way_through_words(list in proptest::collection::vec(flags(), 0..12), command in proptest::collection::vec(word(), 0..3)) {
        prop_assume!(list.iter().filter(|flag| matches!(flag, Flag::Text(Text::Argv0, _))).count() < 2);
        let mut words: Vec<OsString> = list.iter().flat_map(Flag::render).collect();
        words.push("--".into());
        words.extend(command.iter().cloned());
        prop_assert_eq!(lex(&words).unwrap(), Lexed { flags: list, command });
    }

    #[test]
    fn no_words_panic(words in proptest::collection::vec("(--[a-z-]{1,12}|[0-9]{1,30}|.{0,5})", 0..20)) {
        let words: Vec<String> = words;
        // Refused or not, it comes back.
        let line = words.join(" ");
        let made = program(&line, &line);
        prop_assert!(made.is_ok() || !made.unwrap_err().is_empty());
        let result = apply_additional_args(&words, &mut Policy::new("test"));
        prop_assert!(result.is_ok() || !result.unwrap_err().to_string().is_empty());
    }
}
