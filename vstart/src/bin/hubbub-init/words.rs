//! The words of the kernel command line, as Netkit's start-up scripts read them.

/// A kernel command line, split at blanks outside double quotes, the quotes removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Words(Vec<(String, Option<String>)>);

impl Words {
    /// Splits the text of `/proc/cmdline`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut words = Vec::new();
        let mut word = String::new();
        let (mut quoted, mut started) = (false, false);
        for c in text.trim_end_matches('\n').chars() {
            match c {
                '"' => {
                    quoted = !quoted;
                    started = true;
                }
                ' ' | '\t' if !quoted => {
                    if started {
                        words.push(std::mem::take(&mut word));
                    }
                    started = false;
                }
                c => {
                    word.push(c);
                    started = true;
                }
            }
        }
        if started {
            words.push(word);
        }
        Self(words.into_iter().map(split).collect())
    }

    /// The value of the last `key=value`, which is the one that counts.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find_map(|(k, value)| value.as_deref().filter(|_| k == key))
    }

    /// Whether a word without a value is there.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.0.iter().any(|(k, value)| k == word && value.is_none())
    }

    /// The values of every `key=value`, in order.
    pub(crate) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .filter_map(|(_, value)| value.as_deref())
    }

    /// Interfaces to configure and their addresses: `autoconf_eth0=10.0.0.2` is `("eth0", "10.0.0.2/24")`.
    pub(crate) fn autoconf(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().filter_map(|(key, value)| {
            let (interface, address) = (key.strip_prefix("autoconf_")?, value.as_deref()?);
            let address = if address.contains('/') {
                address.to_owned()
            } else {
                format!("{address}/24")
            };
            Some((interface, address))
        })
    }

    /// The numbers of interfaces that the kernel calls vecN, for users ethN: `vec0:transport=bess,...` is 0.
    pub(crate) fn vectors(&self) -> impl Iterator<Item = u32> {
        let number = |key: &str| key.strip_prefix("vec")?.split_once(':')?.0.parse().ok();
        self.0.iter().filter_map(move |(key, _)| number(key))
    }

    /// The numbers of network cards of virtio: `virtio_uml.device=/a:1:3` is 3.
    pub(crate) fn cards(&self) -> impl Iterator<Item = u32> {
        let number = |value: &str| value.split_once(":1:")?.1.parse().ok();
        self.values("virtio_uml.device").filter_map(number)
    }

    /// Whether a console has a device on the host: `con0=null` and `con0=none` have not.
    pub(crate) fn has_console(&self, number: u32) -> bool {
        !matches!(self.value(&format!("con{number}")), None | Some("null" | "none"))
    }
}

fn split(word: String) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_blanks_together() {
        let words =
            Words::parse("mem=132M \"exec=echo a  b\" ro \"mount=/a b,/c\" mount=/d,/e console=tty0\n");
        assert_eq!(words.value("exec"), Some("echo a  b"));
        assert_eq!(words.values("mount").collect::<Vec<_>>(), ["/a b,/c", "/d,/e"]);
        assert_eq!(words.value("ro"), None);
        assert!(words.has("ro") && !words.has("mem") && !words.has("single"));
        assert_eq!(words.value("console"), Some("tty0"));
    }

    #[test]
    fn quotes_inside_a_word_are_removed() {
        assert_eq!(Words::parse("exec=\"a b\"").value("exec"), Some("a b"));
        assert_eq!(Words::parse("exec=").value("exec"), Some(""));
        assert_eq!(Words::parse("  "), Words::default());
    }

    #[test]
    fn the_last_of_several_counts() {
        assert_eq!(Words::parse("hostname=a hostname=b").value("hostname"), Some("b"));
    }

    #[test]
    fn addresses_are_of_class_c_unless_they_say_otherwise() {
        let words = Words::parse("autoconf_eth0=10.0.0.2 autoconf_eth12=10.1.0.2/16 autoconf_x");
        let all: Vec<_> = words.autoconf().collect();
        assert_eq!(
            all,
            [("eth0", "10.0.0.2/24".into()), ("eth12", "10.1.0.2/16".into())]
        );
    }

    #[test]
    fn vectors_are_found() {
        let words =
            Words::parse("vec0:transport=bess,dst=/a,mac=x vector=1 vec12:transport=bess vecx:y=1 vec3=1");
        assert_eq!(words.vectors().collect::<Vec<_>>(), [0, 12]);
    }

    #[test]
    fn cards_are_found() {
        let words = Words::parse("virtio_uml.device=/a:1:3 virtio_uml.device=/b:1 virtio_uml.device=/c:2:1");
        assert_eq!(words.cards().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_null_console_is_none() {
        let words = Words::parse("con=null con0=fd:0,fd:1 con1=null");
        assert!(words.has_console(0));
        assert!(!words.has_console(1));
        assert!(!words.has_console(2));
    }
}
