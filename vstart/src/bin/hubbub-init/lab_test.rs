//! What a machine does when its lab is tested: `test=SECONDS` on the command line.

/// The command that runs the tests once ltest has given the sign. The machine runs on: the tests of others may need
/// it. When all are through, ltest halts them.
pub(crate) fn command(name: &str, delay: &str) -> String {
    // Anything but digits would be a word of the shell's.
    let delay: String = delay.chars().filter(char::is_ascii_digit).collect();
    format!("NAME='{name}'\nDELAY='{delay}'\n{SCRIPT}")
}

/// A machine name has no character that ends the quotes.
const SCRIPT: &str = r#"
tests=/hostlab/_test
results=$tests/results
until [ -e /hostlab/readyfor.test ]; do sleep 0.1; done
sleep "${DELAY:-0}"
mkdir -p "$results"
run() { [ ! -e "$tests/$1.test" ] || sh "$tests/$1.test" >"$results/$2" 2>&1; }
run "$NAME" "$NAME.user"
run shared "$NAME.shared"
{
    echo '# ip address'; ip address show
    echo '# ip route'; ip route show
    echo '# ip -6 route'; ip -6 route show
    echo '# ps'; ps -e -o args=
} >"$results/$NAME.default" 2>&1
: >"/hostlab/$NAME.testdone"
"#;
