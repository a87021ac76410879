//! bubblewrap's command line: `lex` takes it apart, `lower` turns it into changes of a `Policy`. No I/O. Written from
//! bubblewrap's documented behaviour.

mod flag;
mod lex;
mod lower;
#[cfg(test)]
mod tests;

pub use flag::{BindAccess, DataUse, Fd, Flag, OverlayTop, Switch, Text};
pub use lex::{LexError, Lexed, lex};
pub use lower::{BwrapError, apply_additional_args};
