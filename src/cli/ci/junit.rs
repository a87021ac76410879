//! JUnit's XML, as CI systems read it (<https://github.com/testmoapp/junitxml>): a run is a suite of one case.

use super::{denials, layers};
use crate::cli::record::Record;

pub(super) fn suite(record: &Record<'_>) -> String {
    let (failed, broken) = (record.exit_code != 0 && record.outcome.is_some(), record.outcome.is_none());
    let count = |is: bool| u8::from(is);
    let time = format!("{:.3}", record.seconds());
    let name = escape(&record.command.join(" "));
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    text.push_str(&format!(
        "<testsuites name=\"shannot\" tests=\"1\" failures=\"{0}\" errors=\"{1}\" time=\"{time}\">\n  \
         <testsuite name=\"{2}\" tests=\"1\" failures=\"{0}\" errors=\"{1}\" time=\"{time}\" timestamp=\"{3}\">\n    <properties>\n",
        count(failed),
        count(broken),
        escape(record.profile_name()),
        escape(&record.start),
    ));
    let rung = ("rung".to_owned(), record.rung().to_owned());
    let denials = denials(record).into_iter().map(|denial| ("denial".to_owned(), denial));
    for (name, value) in std::iter::once(rung).chain(layers(record)).chain(denials) {
        text.push_str(&format!("      <property name=\"{}\" value=\"{}\"/>\n", escape(&name), escape(&value)));
    }
    let case = format!("    <testcase classname=\"{}\" name=\"{name}\" time=\"{time}\"", escape(record.profile_name()));
    let ending = escape(&record.ending());
    let case = match (failed, broken) {
        (true, _) => format!("{case}>\n      <failure type=\"exit\" message=\"{ending}\"/>\n    </testcase>"),
        (_, true) => format!("{case}>\n      <error type=\"shannot\" message=\"{ending}\"/>\n    </testcase>"),
        _ => format!("{case}/>"),
    };
    text.push_str(&format!("    </properties>\n{case}\n  </testsuite>\n</testsuites>\n"));
    text
}

/// For an attribute. Characters that XML 1.0 can't have at all become U+FFFD; libraries leave them in.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_text_leaves_its_attribute() {
        assert_eq!(super::escape("<a b=\"c\">&\n\u{1b}"), "&lt;a b=&quot;c&quot;&gt;&amp;&#10;\u{fffd}");
    }
}
