//! How the kernel would start a file: the loader and libraries of an ELF file, the interpreter of a script.
//! Reads a few blocks, trusts no number in them, never fails: what it can't read is [`Program::Unknown`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use elf::abi::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, PT_DYNAMIC, PT_INTERP, PT_LOAD};
use elf::dynamic::DynamicTable;
use elf::endian::AnyEndian;
use elf::file::{Class, FileHeader};
use elf::segment::{ProgramHeader, SegmentTable};
use elf::string_table::StringTable;

/// How the kernel would start a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// An ELF file.
    Elf(Elf),
    /// `#!` and the interpreter's path.
    Script {
        /// The word behind `#!`.
        interpreter: PathBuf,
    },
    /// Something else, or something that can't be read.
    Unknown,
}

/// What an ELF file asks of its loader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elf {
    /// PT_INTERP: the dynamic loader. `None` for a static program and for a library.
    pub loader: Option<PathBuf>,
    /// DT_NEEDED: names of libraries.
    pub needed: Vec<String>,
    /// DT_RPATH and DT_RUNPATH, split at colons; may contain `$ORIGIN`.
    pub search: Vec<String>,
}

/// The first block is the header, usually with the program headers and the loader's name.
const FIRST_BLOCK: usize = 4096;
/// More than any sane dynamic section or string table of names; bounds what a hostile file makes us read.
const LARGEST_TABLE: u64 = 1 << 20;
/// linux/binfmts.h, BINPRM_BUF_SIZE: the kernel looks no further for the interpreter's name.
const SCRIPT_LINE: usize = 256;

/// Looks at a file's first block and, for ELF, at its dynamic section.
pub fn parse_program(file: &File) -> Program {
    let mut first = [0_u8; FIRST_BLOCK];
    let Ok(length) = file.read_at(&mut first, 0) else { return Program::Unknown };
    let first = first.get(..length).unwrap_or_default();
    if let Some(line) = first.strip_prefix(b"#!") {
        return parse_script(line);
    }
    parse_elf(file, first).map_or(Program::Unknown, Program::Elf)
}

fn parse_script(line: &[u8]) -> Program {
    let line = line.get(..SCRIPT_LINE.min(line.len())).unwrap_or_default();
    let word = line
        .split(|byte| *byte == b'\n')
        .next()
        .and_then(|line| line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).find(|word| !word.is_empty()));
    word.and_then(|word| std::str::from_utf8(word).ok())
        .map_or(Program::Unknown, |word| Program::Script { interpreter: PathBuf::from(word) })
}

/// Reads `size` bytes at `offset`, from the first block if they are there.
fn read_range(file: &File, first: &[u8], offset: u64, size: u64) -> Option<Vec<u8>> {
    if size > LARGEST_TABLE {
        return None;
    }
    let start = usize::try_from(offset).ok()?;
    let size = usize::try_from(size).ok()?;
    if let Some(range) = first.get(start..start.checked_add(size)?) {
        return Some(range.to_vec());
    }
    let mut buffer = vec![0; size];
    file.read_exact_at(&mut buffer, offset).ok()?;
    Some(buffer)
}

fn parse_elf(file: &File, first: &[u8]) -> Option<Elf> {
    // The crate's own first look does not check the length.
    first.get(..52)?;
    let (endian, class, abi, version) = elf::file::parse_ident::<AnyEndian>(first).ok()?;
    let header_size = if matches!(class, Class::ELF64) { 64 } else { 52 };
    let tail = first.get(elf::abi::EI_NIDENT..header_size)?;
    let header = FileHeader::parse_tail((endian, class, abi, version), tail).ok()?;
    let table_size = u64::from(header.e_phnum).checked_mul(u64::from(header.e_phentsize))?;
    let table = read_range(file, first, header.e_phoff, table_size)?;
    let segments: Vec<ProgramHeader> = SegmentTable::new(header.endianness, header.class, &table).iter().collect();

    let mut elf = Elf::default();
    if let Some(interp) = segments.iter().find(|segment| segment.p_type == PT_INTERP) {
        let name = read_range(file, first, interp.p_offset, interp.p_filesz)?;
        let name = name.split(|byte| *byte == 0).next()?;
        elf.loader = Some(PathBuf::from(std::str::from_utf8(name).ok()?));
    }
    let Some(dynamic) = segments.iter().find(|segment| segment.p_type == PT_DYNAMIC) else {
        return Some(elf);
    };
    let dynamic = read_range(file, first, dynamic.p_offset, dynamic.p_filesz)?;
    let entries = DynamicTable::new(header.endianness, header.class, &dynamic);
    let value = |tag| entries.iter().find(|entry| entry.d_tag == tag).map(|entry| entry.d_val());
    let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Some(elf) };
    let strings = read_range(file, first, file_offset(&segments, address)?, size)?;
    let strings = StringTable::new(&strings);
    for entry in entries.iter() {
        let text = || strings.get(usize::try_from(entry.d_val()).unwrap_or(usize::MAX)).ok();
        match entry.d_tag {
            DT_NEEDED => elf.needed.extend(text().map(str::to_owned)),
            DT_RPATH | DT_RUNPATH => {
                elf.search.extend(text().into_iter().flat_map(|path| path.split(':')).map(str::to_owned));
            }
            _ => {}
        }
    }
    Some(elf)
}

/// Dynamic entries hold addresses; the segment that is loaded there tells the place in the file.
fn file_offset(segments: &[ProgramHeader], address: u64) -> Option<u64> {
    segments
        .iter()
        .filter(|segment| segment.p_type == PT_LOAD)
        .find(|segment| address >= segment.p_vaddr && address - segment.p_vaddr < segment.p_filesz)
        .and_then(|segment| segment.p_offset.checked_add(address - segment.p_vaddr))
}

/// Paths that ldconfig's cache gives for a library (glibc, sysdeps/generic/dl-cache.h, the "new" format: a
/// header of 48 bytes, entries of 24 of which the second and third word are offsets of name and path).
pub(super) fn search_loader_cache(cache: &[u8], name: &str) -> Vec<PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    let word = |at: usize| -> Option<usize> {
        let bytes = cache.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
    };
    let text =
        |at: usize| -> Option<&str> { std::str::from_utf8(cache.get(at..)?.split(|byte| *byte == 0).next()?).ok() };
    let is_name = |at: usize| {
        let rest = cache.get(at..).and_then(|text| text.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    };
    if !cache.starts_with(MAGIC) {
        return Vec::new();
    }
    let count = word(MAGIC.len()).unwrap_or(0).min(cache.len() / ENTRY);
    (0..count)
        .map(|index| HEADER + index * ENTRY)
        .filter(|at| word(at + 4).is_some_and(is_name))
        .filter_map(|at| word(at + 8).and_then(text).map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn parse(bytes: &[u8]) -> Program {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        parse_program(&file)
    }

    #[test]
    fn a_script_names_its_interpreter() {
        let interpreter = |text: &str| Program::Script { interpreter: PathBuf::from(text) };
        assert_eq!(parse(b"#!/bin/sh\n"), interpreter("/bin/sh"));
        assert_eq!(parse(b"#! /usr/bin/env python3 -u\necho"), interpreter("/usr/bin/env"));
        assert_eq!(parse(b"#!\n"), Program::Unknown);
    }

    #[test]
    fn this_test_is_a_program_that_can_be_read() {
        let file = File::open("/proc/self/exe").unwrap();
        assert!(matches!(parse_program(&file), Program::Elf(_)));
    }

    #[test]
    fn ls_names_its_loader_and_libc() {
        let Ok(file) = File::open("/bin/ls") else { return };
        let Program::Elf(elf) = parse_program(&file) else { panic!("/bin/ls is not ELF") };
        if elf.loader.is_some() {
            assert!(elf.needed.iter().any(|name| name.contains("libc")), "{elf:?}");
        }
    }

    #[test]
    fn damaged_files_are_unknown_and_never_panic() {
        let mut bytes = std::fs::read("/proc/self/exe").unwrap();
        bytes.truncate(100_000);
        for at in 0..1024 {
            let Some(byte) = bytes.get_mut(at) else { break };
            let old = std::mem::replace(byte, 0xff);
            parse(&bytes[..65536.min(bytes.len())]);
            bytes[at] = old;
        }
        assert_eq!(parse(b"\x7fELF"), Program::Unknown);
        assert_eq!(parse(b""), Program::Unknown);
    }

    #[test]
    fn the_loader_cache_is_searched_by_name() {
        let Ok(cache) = std::fs::read("/etc/ld.so.cache") else { return };
        if cache.starts_with(b"glibc-ld.so.cache1.1") {
            assert!(!search_loader_cache(&cache, "libc.so.6").is_empty());
        }
        assert!(search_loader_cache(&cache, "no-such-library.so").is_empty());
        assert!(search_loader_cache(b"glibc-ld.so.cache1.1\xff\xff\xff\xff", "x").is_empty());
    }
}
