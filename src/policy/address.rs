//! Addresses in text.

/// The text without what stands before the host of an address: `https://user:token@host` becomes `https://host` (RFC 3986, userinfo).
pub fn without_userinfo(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, address)) = rest.split_once("://") {
        let end = address.find(['/', '?', '#', '"', '\'', ' ', '\t', '\n']).unwrap_or(address.len());
        let (authority, behind) = address.split_at(end);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        clean.push_str(&format!("{before}://{authority}"));
        rest = behind;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::without_userinfo;

    #[test]
    fn only_what_stands_before_a_host_goes() {
        for (text, clean) in [
            ("https://u:t@h/a@b http://x@y:8", "https://h/a@b http://y:8"),
            ("git@host:a/b.git", "git@host:a/b.git"),
            ("://@", "://"),
            ("", ""),
        ] {
            assert_eq!(without_userinfo(text), clean);
        }
    }
}
