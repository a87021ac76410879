//! bubblewrap's command line: `lex` takes it apart, `lower` turns options into changes of a `Policy`, `program` a whole
//! command line into one. No I/O. Written from bubblewrap's documented behaviour.

mod flag;
mod help;
mod lex;
mod lower;
mod program;
#[cfg(test)]
mod tests;

pub use flag::{BindAccess, DataUse, Fd, Flag, Switch, Text};
pub use help::usage;
pub use lex::{LexError, Lexed, ReadArgs, lex, lex_program};
pub use lower::{BwrapError, apply_additional_args};
pub use program::{Caller, filter_descriptors, policy, repeated};
