//! bubblewrap's command line: `lex` takes it apart, `lower` turns it into changes of a `Policy`. No I/O. Written from
//! bubblewrap's documented behaviour.

mod lex;
mod lower;
#[cfg(test)]
mod tests;

pub use lex::{BindAccess, DataUse, Fd, Flag, LexError, Lexed, OverlayTop, Switch, Text, lex};
pub use lower::{BwrapError, apply_additional_args};
