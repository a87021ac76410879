//! Scripts in the runner's formats: its quoting is made anew here, from what its documentation and its tests say of it.

use std::process::Command;

use proptest::prelude::*;

use super::*;

const TOKEN: &str = "glcbt-64_Abc1dEfGhIjKlMnOp";

#[derive(Clone, Copy, Debug)]
struct Runner {
    posix: bool,
    legacy: bool,
}

const RUNNERS: &[Runner] = &[
    Runner { posix: false, legacy: false },
    Runner { posix: false, legacy: true },
    Runner { posix: true, legacy: false },
    Runner { posix: true, legacy: true },
];

impl Runner {
    fn word(self, text: &str) -> String {
        if text.is_empty() {
            return "''".to_owned();
        }
        if self.posix {
            let quoted: String =
                text.chars().flat_map(|c| "`\"\\$".contains(c).then_some('\\').into_iter().chain([c])).collect();
            let needs = text.contains(|c| " !#%&()*<=>?[|`\"\\$".contains(c));
            return if needs { format!("\"{quoted}\"") } else { quoted };
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b",-./@_".contains(&byte);
        if text.bytes().all(plain) {
            return text.to_owned();
        }
        let mut word = "$'".to_owned();
        for byte in text.bytes() {
            match byte {
                b'\n' => word.push_str("\\n"),
                b'\t' => word.push_str("\\t"),
                b'\r' => word.push_str("\\r"),
                b'\'' => word.push_str("\\'"),
                b'\\' => word.push_str("\\\\"),
                b' '..=b'~' => word.push(char::from(byte)),
                _ => word.push_str(&format!("\\x{byte:02x}")),
            }
        }
        word + "'"
    }

    /// A user's script.
    fn script(self, variables: &[(&str, &str)], files: &[(&str, &str)], commands: &[&str]) -> String {
        let tmp = "/builds/x/job/builds/a/b.tmp";
        let mut lines = String::new();
        for (name, value) in variables {
            lines += &format!("export {name}={}\n", self.word(value));
        }
        for (name, value) in files {
            lines += &format!("mkdir -p \"{tmp}\"\nprintf '%s' {} > \"{tmp}/{name}\"\n", self.word(value));
            lines += &format!("export {name}=\"{tmp}/{name}\"\n");
        }
        lines += &format!("mkdir -p \"{tmp}\"\ntouch \"{tmp}/gitlab_runner_env\"\n");
        lines += &format!("while read -r line; do export \"$line\"; done < \"{tmp}/gitlab_runner_env\"\n");
        lines += "cd /builds/x/job/builds/a/b\n";
        for command in commands {
            lines += &format!("echo {}\n{command}\n", self.word(&format!("\x1b[32;1m$ {command}\x1b[0;m")));
        }
        let word = self.word(&lines);
        let eval = if self.legacy {
            format!(": | eval {word}\n")
        } else {
            format!("(trap 'exit 1' TERM; eval {word}) < /dev/null\n")
        };
        format!(
            "#!/usr/bin/env bash\n\ntrap 'exit 1' TERM\n\ncase \"$(set -o)\" in *\"pipefail\"*) set -o pipefail;; esac; set -o errexit\nset +o noclobber\n{eval}exit 0\n"
        )
    }
}

fn denied(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    name.contains("TOKEN") || name.contains("KEY")
}

#[track_caller]
fn clean(script: &str, secrets: &[(&str, &str)]) -> (String, Vec<String>) {
    let secrets = Secrets::new(secrets.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes())));
    let (clean, found) = without_secrets(script.as_bytes(), denied, &secrets).unwrap();
    (String::from_utf8(clean).unwrap(), found.into_iter().map(str::to_owned).collect())
}

#[test]
fn what_has_no_secrets_stays_as_it_is() {
    for runner in RUNNERS {
        let values =
            [("CI", "true"), ("GREETING", "it is 'ü' \"$HOME\" `x` \\ \t!"), ("EMPTY", ""), ("LINES", "a b\nc\n")];
        let commands = ["export MY_TOKEN=$(mint) && deploy", "export X_KEY=\"a b\"; echo 'é' $X_KEY", "cat <<X\n a\nX"];
        let script = runner.script(&values, &[("PLAIN", "a file\nof two lines")], &commands);
        let (same, found) = clean(&script, &[("CI_JOB_TOKEN", TOKEN), ("SHORT_TOKEN", "true"), ("EMPTY_TOKEN", "")]);
        assert_eq!(same, script, "{runner:?}");
        assert!(found.is_empty());
    }
}

#[test]
fn denied_names_lose_their_values_and_others_keep_theirs() {
    for runner in RUNNERS {
        let key = "-----BEGIN KEY-----\nc2VjcmV0IGtleSBvbmUgdHdv\nexport A=b\n-----END KEY-----\n";
        let values = [("A", "1"), ("CI_JOB_TOKEN", "secret"), ("B", "2"), ("SSH_KEY", key), ("C", "3 4")];
        let files = [("PLAIN", "keep this"), ("FILE_KEY", "secret 'file'\n")];
        let script = runner.script(&values, &files, &["export MY_TOKEN=x", "echo done"]);
        let (clean, names) = clean(&script, &[]);
        let payload = |script: &str| {
            let (_, word) = script.split_once("eval ").unwrap();
            String::from_utf8(unquote(word.as_bytes()).unwrap().1).unwrap()
        };
        let path = "/builds/x/job/builds/a/b.tmp/FILE_KEY";
        let expected = payload(&script)
            .replace("CI_JOB_TOKEN=secret\n", "CI_JOB_TOKEN=\n")
            .replace(&format!("SSH_KEY={}\n", runner.word(key)), "SSH_KEY=\n")
            .replace(&runner.word("secret 'file'\n"), "''")
            .replace(&format!("FILE_KEY=\"{path}\"\n"), "FILE_KEY=\n");
        assert_eq!(payload(&clean), expected, "{runner:?}");
        assert!(!expected.contains("secret") && !expected.contains("c2Vjcm"), "{expected}");
        assert!(names.is_empty());
    }
}

#[test]
fn values_are_found_under_other_names_and_in_other_quotes() {
    let odd = "pa'ss \"word\" $x `y` \\ ü\nc2VjcmV0IGxpbmUgb2Yga2V5\nlast";
    for runner in RUNNERS {
        let values = [("COPY", TOKEN), ("URL", &*format!("https://ci:{TOKEN}@example.org")), ("ODD", odd)];
        let files = [("FILE", odd), ("PART", "x c2VjcmV0IGxpbmUgb2Yga2V5 y")];
        let script = runner.script(&values, &files, &[&format!("login {TOKEN}"), "echo kind: Config"]);
        let (clean, found) =
            clean(&script, &[("CI_JOB_TOKEN", TOKEN), ("ODD_KEY", odd), ("K_KEY", "kind: Config\nx\n")]);
        for part in [TOKEN, "ss \"word", "ss \\\"word", "c2Vjcm", "x `y"] {
            assert!(!clean.contains(part), "{part} in {clean}");
        }
        assert!(clean.contains("MASKED@example.org") && clean.contains("login MASKED"), "{clean}");
        assert!(clean.contains("echo kind: Config"), "{clean}");
        assert_eq!(found, ["CI_JOB_TOKEN", "ODD_KEY"]);
        let checked = Command::new("bash").args(["-n", "-c", &clean]).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }
}

#[test]
fn values_that_break_the_runners_own_quoting_are_taken_out_too() {
    let runner = Runner { posix: true, legacy: false };
    let values = [("A", "it's"), ("CI_JOB_TOKEN", TOKEN), ("B", "x';env"), ("OTHER_TOKEN", "a;b'c"), ("D", "'")];
    let script = runner.script(&values, &[], &["echo x"]);
    let (clean, _) = clean(&script, &[]);
    assert!(!clean.contains(TOKEN) && !clean.contains("a;b"), "{clean}");
    // As if the variables had ended.
    let end = "x\nwhile read -r line; do export \"$line\"; done < \"x\"";
    for runner in RUNNERS {
        let script =
            runner.script(&[("A", end), ("CI_JOB_TOKEN", TOKEN)], &[("F", end), ("F_KEY", TOKEN)], &["echo x"]);
        let (clean, _) = self::clean(&script, &[]);
        assert!(!clean.contains(TOKEN), "{clean}");
    }
}

#[test]
fn what_is_not_quoted_as_known_is_refused_and_plain_text_is_read() {
    let secrets = Secrets::new([]);
    for script in ["eval $'\\q'", "eval 'x'", "eval $'x", "eval \"\\x\"", "eval $X", "eval $'\\x0g'"] {
        assert!(without_secrets(script.as_bytes(), denied, &secrets).is_none(), "{script}");
    }
    let (clean, _) = clean("export A_TOKEN=\"x\"\necho $A_TOKEN\n", &[]);
    assert_eq!(clean, "export A_TOKEN=\necho $A_TOKEN\n");
    let bytes = b"export X=\xff\xfe\nexport A_TOKEN=\xff\nexit 0";
    assert_eq!(without_secrets(bytes, denied, &secrets).unwrap().0, b"export X=\xff\xfe\nexport A_TOKEN=\nexit 0");
}

proptest! {
    #[test]
    fn whatever_the_values_are_no_token_is_left_and_honest_scripts_stay(
        values in prop::collection::vec("[a-z'\"$`\\\\ ;\n\t!ü=>]{0,12}", 6),
        runner in 0..4_usize,
    ) {
        let runner = RUNNERS[runner];
        let [a, b, c, d, e, f] = <[String; 6]>::try_from(values).unwrap();
        let honest = runner.script(&[("A", &a), ("B", &b)], &[("F", &c)], &[&d]);
        let secrets = Secrets::new([("CI_JOB_TOKEN".to_owned(), TOKEN.as_bytes())]);
        let (same, found) = without_secrets(honest.as_bytes(), denied, &secrets).unwrap();
        prop_assert_eq!(String::from_utf8(same).unwrap(), honest);
        prop_assert!(found.is_empty());
        let copy = format!("{e}{TOKEN}{f}");
        let values = [("A", &*a), ("CI_JOB_TOKEN", TOKEN), ("B", &b), ("C", &copy), ("X_KEY", &copy), ("E", &e)];
        let hostile = runner.script(&values, &[("F", &c), ("F_KEY", &copy), ("G", &copy)], &[&d, &copy]);
        let (clean, _) = without_secrets(hostile.as_bytes(), denied, &secrets).unwrap();
        prop_assert!(find(&clean, TOKEN.as_bytes()).is_none());
        // By their names alone, where nothing is known of values.
        let values = [("A", &*a), ("CI_JOB_TOKEN", TOKEN), ("B", &b), ("X_KEY", &copy)];
        let hostile = runner.script(&values, &[("F", &c)], &[&d]);
        let (clean, _) = without_secrets(hostile.as_bytes(), denied, &Secrets::new([])).unwrap();
        let broken = runner.posix && copy.contains(['\n', '\'']);
        prop_assert!(broken || find(&clean, TOKEN.as_bytes()).is_none());
    }
}
