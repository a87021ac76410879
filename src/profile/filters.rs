//! `seccomp_profile`: presets and filter files, in order.

use std::path::{Path, PathBuf};

use super::error::ProfileError;
use super::trust;
use crate::seccomp::{Context, Filter, FilterError, Preset};
use crate::spelling::nearest;

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
                    let hint = nearest(word, Preset::names()).map(|name| format!("did you mean {name:?}?"));
                    let known = Preset::names().collect::<Vec<_>>().join(", ");
                    return Err(refuse(format!("{word:?} is neither a preset ({known}) nor a file"), hint));
                }
                filters.push(file(&path)?);
            }
        }
    }
    Ok(filters)
}

fn preset(preset: Preset) -> Option<Filter> {
    preset.program().map(|program| Filter::raw(format!("preset {preset}"), program))
}

fn file(path: &Path) -> Result<Filter, ProfileError> {
    let refuse = |cause: FilterError| ProfileError::Filter { path: path.to_owned(), cause };
    let bytes = trust::read(path)?;
    let context = Context::here().map_err(|errno| ProfileError::Kernel(errno.into()))?;
    Filter::from_bytes(path.display().to_string(), &bytes, &context).map_err(refuse)
}
