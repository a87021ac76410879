//! Libraries that are made to become code behind an allowlist's back: by a second table of segments, by an executable stack.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::*;

/// Says where it is on the way, if it runs.
const EVIL: &str = r#"
#include <unistd.h>
__attribute__((used)) const char table[56*16] = "PHDRTABLE!";
__attribute__((constructor)) void go(void) { static const char m[] = "reached\n"; write(1, m, 8); }
__asm__(".text\nblah: .quad environ\n");
"#;

/// Takes the right to be executed from the segments that are mapped, and gives it in a table that the loader finds by PT_PHDR, by
/// which it restores protections after relocating the text.
const TWO_TABLES: &str = r"
import struct, sys
d = bytearray(open(sys.argv[1], 'rb').read())
po, = struct.unpack_from('<Q', d, 32); n, = struct.unpack_from('<H', d, 56); t = d.find(b'PHDRTABLE!')
ph = [list(struct.unpack_from('<IIQQQQQQ', d, po + 56*i)) for i in range(n)]
for p in ph:
    if p[0] == 1 and p[2] <= t < p[2] + p[5]: tv = p[3] + t - p[2]
d[t:t + 56*n] = d[po:po + 56*n]; done = 0
for i, p in enumerate(ph):
    if p[0] == 1: p[1] &= ~1
    elif p[0] in (4, 0x6474e550) and not done: p[:] = [6, 4, t, tv, tv, 56*n, 56*n, p[7]]; done = 1
    struct.pack_into('<IIQQQQQQ', d, po + 56*i, *p)
open(sys.argv[2], 'wb').write(d)
";

fn build(scratch: &Scratch, name: &str, options: &[&str]) -> PathBuf {
    let source = scratch.file("evil.c", EVIL);
    let library = scratch.path().join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O1"]).args(options).arg("-o").arg(&library).arg(source);
    assert!(gcc.status().unwrap().success());
    library
}

#[test]
fn no_library_becomes_code_that_the_allowlist_does_not_name() {
    if !cfg!(target_arch = "x86_64") || tool("gcc").is_none() || tool("python3").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let plain = build(&scratch, "plain.so", &["-Wl,-z,notext", "-Wl,-z,norelro"]);
    let stack = build(&scratch, "stack.so", &["-z", "execstack"]);
    let tables = scratch.path().join("tables.so");
    let made = Command::new("python3").args(["-c", TWO_TABLES]).args([&plain, &tables]).status().unwrap();
    assert!(made.success());
    // Works where nothing refuses it.
    for library in [&plain, &tables] {
        let outside = Command::new("/bin/ls").arg("/usr").env("LD_PRELOAD", library).output().unwrap();
        assert!(String::from_utf8_lossy(&outside.stdout).contains("reached"), "{library:?}: {outside:?}");
    }
    let bind = json!({"source": scratch.path(), "target": scratch.path()});
    let profile = with_binds(&[bind], json!({"allowed_commands": ["env", "ls", "find"]}));
    for caller in callers() {
        for backend in ["namespaces", "landlock"] {
            let run = |words: &[&str]| {
                Shannot::new(caller).profile(&profile).args(["run", "--backend", backend, "--"]).args(words).output()
            };
            let loader = ["/lib64/ld-linux-x86-64.so.2", "--preload"];
            for library in [&plain, &stack, &tables].map(|path| path.display().to_string()) {
                let preloaded = run(&["env", &format!("LD_PRELOAD={library}"), "ls", "-d", "/usr"]);
                let asked =
                    run(&[&["find", "/usr", "-maxdepth", "0", "-exec"], &loader[..], &[&library, "/bin/ls", ";"]]
                        .concat());
                for result in [preloaded, asked] {
                    assert!(!result.stdout.contains("reached"), "{library} on {backend} as {caller:?}: {result:?}");
                }
            }
            run(&["env", "ls", "-d", "/usr"]).expect_code(0).expect_stdout("/usr");
        }
    }
}

/// A stack that a library makes executable is where its constructor may have put code.
#[test]
fn the_stack_stays_what_it_is() {
    let program = "
import os
addr = [int(l.split('-')[0], 16) for l in open('/proc/self/maps') if '[stack]' in l][0]
print('stack', call(10, addr + 4096, 4096, 7), call(10, addr + 4096, 4096, 7 | 0x1000000))
m = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=3)
a = ctypes.addressof(ctypes.c_char.from_buffer(m))
print('memory', call(10, a, 4096, 7))
f = open('/usr/bin/env', 'rb')
libc.mmap.restype = ctypes.c_void_p
p = libc.mmap(0, 4096, 1, 2, f.fileno(), 0)
print('file', call(10, p, 4096, 5))
";
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    for caller in callers() {
        let Some(python) = tool("python3") else { return };
        let python = fs::canonicalize(python).unwrap();
        let lib = format!("/usr/lib/{}/lib-dynload/*", python.file_name().unwrap().to_string_lossy());
        let profile = profile(json!({"allowed_commands": [python, lib, "/usr/bin/python3"]}));
        let program = format!("{PRELUDE}{program}");
        for backend in ["namespaces", "landlock"] {
            let run = Shannot::new(caller).profile(&profile).args(["run", "--backend", backend, "--"]);
            let result = run.args([Path::new("/usr/bin/python3")]).args(["-c", &program]).output().expect_code(0);
            let result = result.expect_stdout("memory ok");
            let stack = result.stdout.lines().next().unwrap_or_default();
            assert!(stack.ends_with(" EACCES"), "{backend}: {result:?}");
            let refused = if backend == "landlock" { "file EPERM" } else { "file EACCES" };
            assert!(result.stdout.contains(refused), "{backend}: {result:?}");
        }
    }
}
