//! What a command changed in a workspace that it saw through an overlay: kept apart, shown, and applied or thrown away.
//! Knows nothing of policies and sandboxes: it reads the upper directory that overlayfs has filled beside the workspace.
//!
//! [`Store::create`] makes a [`Run`] with the folders that a mount needs, [`Run::finish`] notes that its command has
//! ended; later [`Store::open`] finds it again for [`Run::changes`], [`Run::apply`] and [`Run::artifact`].
//!
//! Both trees are hostile: the command wrote the one, and whoever else writes in the workspace may do so at the same time.
//! So each folder is reached by descriptors, name by name, and no link in it is followed.

mod apply;
mod artifact;
mod change;
mod content;
mod diff;
mod error;
mod journal;
mod place;
mod record;
mod remove;
mod run;
mod store;
#[cfg(test)]
mod tests;
mod tree;
mod upper;

pub use self::artifact::LeftOut;
pub use self::change::{Change, ChangeKind, Node, Protected, Refusal, printable};
pub use self::error::Error;
pub use self::record::{Record, State};
pub use self::run::{Applied, Options, Run};
pub use self::store::{Listed, Store};
