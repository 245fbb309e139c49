//! Images for the node, of programs of this machine, without a registry and without a builder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tar::Archive;
use crate::{
    error::{Context, Error, Result},
    tools::{
        hex,
        mongod::{Mongod, Version},
    },
};

/// Where an image has the libraries of its program, found by `LD_LIBRARY_PATH`.
const LIBRARIES: &str = "usr/lib/bundled";

/// Who runs the programs: a number that is nobody, as distroless images have it.
pub(super) const USER: u32 = 65532;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A program with the shared libraries that it needs, and nothing else: no shell, not root.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    program: String,
    arguments: Vec<String>,
    /// By their paths in the image, without the first slash.
    files: BTreeMap<String, Content>,
}

#[derive(Debug, Clone)]
enum Content {
    /// A file of this machine.
    Of(PathBuf),
    Text(String),
}

impl Image {
    /// Of a program, which the image has in `/usr/local/bin`.
    pub fn of(name: impl Into<String>, program: &Path) -> Result<Self> {
        Self::with_libraries(name.into(), program, None)
    }

    /// Of a mongod that the test bed has; of the machine's own if no version is named.
    pub fn of_mongod(name: impl Into<String>, version: Option<Version>) -> Result<Self> {
        let mongod = Mongod::find(version)?;
        Self::with_libraries(name.into(), &mongod.program, mongod.libraries.as_deref())
    }

    fn with_libraries(name: String, program: &Path, more: Option<&Path>) -> Result<Self> {
        let file = program.file_name().unwrap_or_default().to_string_lossy();
        let mut image = Self {
            name,
            program: format!("/usr/local/bin/{file}"),
            arguments: Vec::new(),
            files: BTreeMap::new(),
        };
        let own = image.program[1..].to_owned();
        image.files.insert(own, Content::Of(program.into()));
        for (name, path) in libraries(program, more)? {
            image.files.insert(name, Content::Of(path));
        }
        let nobody = format!("root:x:0:0::/:/\nnonroot:x:{USER}:{USER}::/:/\n");
        for (path, text) in [
            ("etc/passwd", nobody.as_str()),
            // A pod's own name is in its /etc/hosts.
            ("etc/nsswitch.conf", "hosts: files dns\n"),
        ] {
            image.files.insert(path.into(), Content::Text(text.into()));
        }
        Ok(image)
    }

    /// What the program is called with, if a pod does not say.
    pub(super) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|&it| it.to_owned()).collect();
        self
    }

    /// Its name, with a tag.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn config(&self, layer: &str) -> Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "User": format!("{USER}:{USER}"),
                "Env": [
                    "PATH=/usr/local/bin",
                    format!("LD_LIBRARY_PATH=/{LIBRARIES}"),
                ],
                "Entrypoint": [self.program],
                "Cmd": self.arguments,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        })
    }

    /// Writes an archive in the layout of the Open Container Initiative into `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<PathBuf> {
        let archive = folder.join("image.tar");
        self.write_both(folder, &archive)
            .context(|| format!("make the image {}", self.name))?;
        Ok(archive)
    }

    fn write_both(&self, folder: &Path, archive: &Path) -> io::Result<()> {
        let layer = folder.join("layer.tar");
        let hash = self.write_layer(&layer)?;
        let size = layer.metadata()?.len();
        let config = self.config(&hash).to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [{"mediaType": LAYER, "digest": format!("sha256:{hash}"), "size": size}],
        })
        .to_string();
        let mut listed = descriptor(MANIFEST, &manifest);
        listed["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string();
        let mut tar = Archive::new(BufWriter::new(File::create(archive)?));
        let mut text =
            |path: &str, text: &str| tar.file(path, 0o644, text.len() as u64, text.as_bytes());
        text("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        text("index.json", &index)?;
        text(&blob(&sha256(&manifest)), &manifest)?;
        text(&blob(&sha256(&config)), &config)?;
        tar.file(&blob(&hash), 0o644, size, File::open(&layer)?)?;
        tar.finish()?;
        fs::remove_file(&layer)
    }

    /// Writes all files; returns the hash of the layer.
    fn write_layer(&self, path: &Path) -> io::Result<String> {
        let file = BufWriter::new(File::create(path)?);
        let mut tar = Archive::new(Hashing {
            to: file,
            hash: Sha256::new(),
        });
        let mut folders = BTreeSet::new();
        for path in self.files.keys() {
            let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            folders.extend(parents);
        }
        for folder in folders {
            tar.folder(folder, 0o755)?;
        }
        // What Kubernetes mounts over.
        tar.folder("tmp", 0o1777)?;
        tar.folder("data", 0o755)?;
        for (path, content) in &self.files {
            match content {
                Content::Of(source) => {
                    let meta = source.metadata()?;
                    let mode = meta.permissions().mode() & 0o111 | 0o644;
                    let file = BufReader::new(File::open(source)?);
                    tar.file(path, mode, meta.len(), file)?;
                }
                Content::Text(text) => {
                    tar.file(path, 0o644, text.len() as u64, text.as_bytes())?;
                }
            }
        }
        Ok(hex(&tar.finish()?.hash.finalize()))
    }
}

struct Hashing<W> {
    to: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn descriptor(kind: &str, content: &str) -> Value {
    json!({
        "mediaType": kind,
        "digest": format!("sha256:{}", sha256(content)),
        "size": content.len(),
    })
}

fn blob(hash: &str) -> String {
    format!("blobs/sha256/{hash}")
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// What a program is linked against, by the paths in the image: libraries under the names by
/// which they are asked for, the loader where the program says that it is.
fn libraries(program: &Path, more: Option<&Path>) -> Result<Vec<(String, PathBuf)>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    if let Some(more) = more {
        ldd.env("LD_LIBRARY_PATH", more);
    }
    let what = || format!("list the libraries of {}", program.display());
    let output = ldd.output().context(what)?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || listed.contains("not found") {
        let stderr = String::from_utf8_lossy(&output.stderr) + listed.as_str();
        return Err(Error::Failed {
            what: what(),
            status: output.status,
            stderr: stderr.into_owned(),
        });
    }
    Ok(parse(&listed))
}

fn parse(listed: &str) -> Vec<(String, PathBuf)> {
    let line = |line: &str| {
        let (line, _address) = line.trim().rsplit_once(" (")?;
        match line.split_once(" => ") {
            Some((name, path)) => Some((format!("{LIBRARIES}/{name}"), path.into())),
            // Else it is the kernel's own library, which is no file.
            None => line
                .strip_prefix('/')
                .map(|name| (name.into(), line.into())),
        }
    };
    listed.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_have_the_names_they_are_asked_for_by_and_the_loader_its_place() {
        let listed = "\
\tlinux-vdso.so.1 (0x00007ffe0d3c5000)
\tlibssl.so.1.1 => /cache/lib/libssl.so.1.1 (0x00007f1d2b200000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f1d2b5d9000)
";
        let expected = [
            ("usr/lib/bundled/libssl.so.1.1", "/cache/lib/libssl.so.1.1"),
            ("lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
        ]
        .map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(parse(listed), expected);
    }
}
