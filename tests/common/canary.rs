//! Passwords of the tests: recognisable, so that they can be looked for wherever they must not be.

use std::io::Write;

/// What every password of the tests begins with.
const CANARY: &str = "canary-";

/// The same, also as bytes are shown, and as it looks in base64, which depends on how many bytes
/// stand before it. Then the same of what is in the first line of every private key.
const FORMS: [&str; 10] = [
    CANARY,
    "99, 97, 110, 97, 114, 121, 45",
    "Y2FuYXJ5L",
    "NhbmFyeS",
    "jYW5hcnkt",
    "PRIVATE KEY",
    "80, 82, 73, 86, 65, 84, 69, 32, 75, 69, 89",
    "UFJJVkFURSBLRV",
    "BSSVZBVEUgS0VZ",
    "QUklWQVRFIEtFW",
];

/// So much before and after what was found is shown.
const AROUND: usize = 120;

/// Where one of these is, with what stands around it.
fn find<'a>(text: &[u8], forms: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let at = forms.into_iter().find_map(|form| {
        let mut windows = text.windows(form.len());
        windows.position(|window| window == form.as_bytes())
    })?;
    let around = at.saturating_sub(AROUND)..text.len().min(at + AROUND);
    Some(String::from_utf8_lossy(&text[around]).into_owned())
}

/// Fails if there is a password.
pub fn assert_none(place: &str, text: impl AsRef<[u8]>) {
    assert_none_of(place, text, &[]);
}

/// Fails if there is a password, or one of these.
pub fn assert_none_of(place: &str, text: impl AsRef<[u8]>, more: &[&str]) {
    let forms = FORMS.into_iter().chain(more.iter().copied());
    if let Some(found) = find(text.as_ref(), forms) {
        panic!("a credential is in {place}: …{found}…");
    }
}

/// Writes the log of a test, and ends all if there is a password in it: a panic in a mirror's task
/// could be taken for what the test is about.
#[derive(Default)]
pub struct Watched(tracing_subscriber::fmt::TestWriter);

impl Write for Watched {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if let Some(found) = find(line, FORMS) {
            // Not as `eprintln!` does it: what the test harness keeps would be lost.
            let _ = writeln!(std::io::stderr(), "a credential is in the log: …{found}…");
            std::process::abort();
        }
        self.0.write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
