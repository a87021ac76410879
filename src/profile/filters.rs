//! `seccomp_profile`: presets and filter files, in order.

use std::path::{Path, PathBuf};

use super::error::{ProfileError, nearest};
use super::trust;
use crate::policy::Filter;
use crate::seccomp::{Preset, Program};

/// Loads what the words name. The preset `default` comes first, unless another preset is named.
pub(super) fn load(
    words: &[String],
    resolve: impl Fn(&str) -> Result<PathBuf, String>,
    refuse: impl Fn(String, Option<String>) -> ProfileError,
) -> Result<Vec<Filter>, ProfileError> {
    let presets: Vec<Option<Preset>> = words.iter().map(|word| word.parse().ok()).collect();
    let mut filters = Vec::new();
    if presets.iter().all(Option::is_none) {
        filters.extend(preset(Preset::Default));
    }
    for (word, named) in words.iter().zip(presets) {
        match named {
            Some(named) => filters.extend(preset(named)),
            None => {
                let path = resolve(word).map_err(|reason| refuse(reason, None))?;
                if !word.contains(['/', '.']) && !path.exists() {
                    let hint =
                        nearest(word, Preset::NAMES.iter().copied()).map(|name| format!("did you mean {name:?}?"));
                    let known = Preset::NAMES.join(", ");
                    return Err(refuse(format!("{word:?} is neither a preset ({known}) nor a file"), hint));
                }
                filters.push(file(&path)?);
            }
        }
    }
    Ok(filters)
}

fn preset(preset: Preset) -> Option<Filter> {
    preset.program().map(|program| Filter { origin: format!("preset {preset}"), program })
}

fn file(path: &Path) -> Result<Filter, ProfileError> {
    let refuse = |reason: String| ProfileError::Filter { path: path.to_owned(), reason };
    let bytes = trust::read(path)?;
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
        return Err(refuse("it is JSON, not a compiled filter (an array of struct sock_filter, .bpf)".to_owned()));
    }
    let program = Program::from_bytes(&bytes).map_err(|error| refuse(error.to_string()))?;
    Ok(Filter { origin: path.display().to_string(), program })
}
