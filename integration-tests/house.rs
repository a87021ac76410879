//! The house map: which room may import which, and where unsafe code may be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::sources;

/// README's table. `policy` and `plan` name protections by `report`'s words; `cli` may use every room.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("spelling", &[]),
    ("seccomp", &["spelling"]),
    ("report", &[]),
    ("policy", &["seccomp", "report"]),
    ("profile", &["policy", "seccomp", "report", "bwrap", "spelling"]),
    ("bwrap", &["policy", "seccomp"]),
    ("host", &["sys"]),
    ("removal", &["sys"]),
    ("changes", &["host", "removal", "sys"]),
    ("workspace", &["policy", "host", "sys"]),
    ("plan", &["policy", "host", "seccomp", "report", "sys"]),
    ("sandbox", &["plan", "policy", "removal", "report", "seccomp", "host", "sys"]),
    (
        "cli",
        &[
            "bwrap",
            "changes",
            "host",
            "plan",
            "policy",
            "profile",
            "removal",
            "report",
            "sandbox",
            "seccomp",
            "spelling",
            "sys",
            "workspace",
        ],
    ),
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn source_folder() -> PathBuf {
    sources().join("src")
}

/// Each source file below src with the room that it is in.
fn rooms() -> Vec<(String, PathBuf, String)> {
    let root = source_folder();
    let room = |path: &Path| {
        path.strip_prefix(&root).unwrap().components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "")
    };
    files(&root).into_iter().map(|path| (room(&path), path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// Code without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or_default())
}

#[test]
fn every_import_has_its_arrow() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    for (room, path, text) in rooms() {
        if ["main", "lib", "bin"].contains(&room.as_str()) {
            continue;
        }
        let may = allowed.get(room.as_str()).unwrap_or_else(|| panic!("room {room} is not on the map"));
        for line in code(&text) {
            for used in line.split("crate::").skip(1) {
                let words: Vec<&str> = match used.strip_prefix('{') {
                    Some(list) => list.split([',', '}', ';']).map(str::trim).collect(),
                    None => vec![used],
                };
                for word in words {
                    let other: String = word.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    let fine = other.is_empty() || other == room || may.contains(&other.as_str());
                    assert!(fine, "{}: {room} may not import {other}", path.display());
                }
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_alone_and_each_block_says_why() {
    for (room, path, text) in rooms() {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in code(&text).enumerate() {
            if !line.contains("unsafe {") && !line.contains("#[unsafe(") {
                continue;
            }
            assert_eq!(room, "sys", "{}:{}", path.display(), index + 1);
            let before = &lines[index.saturating_sub(8)..index];
            assert!(before.iter().any(|line| line.contains("SAFETY:")), "{}:{}", path.display(), index + 1);
        }
    }
}

#[test]
fn files_and_openings_keep_the_house_habits() {
    for (room, path, text) in rooms() {
        assert!(text.starts_with("//!"), "{} does not say what it is for", path.display());
        let lines = text.lines().count();
        // There is one door for all unsafe code, and each block needs its note.
        let most = if room == "sys" { 700 } else { 500 };
        assert!(lines <= most, "{} has {lines} lines", path.display());
    }
}
