//! A disk of a server's own, so small that it can be full.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::error::{Context, Error, Result};

/// What takes up the space.
const FILLER: &str = "filler";

/// A file system in memory, mounted on a folder. Only those who may mount can have one.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts it on a folder, which is made.
    pub(crate) fn mount(folder: &Path, megabytes: u32) -> Result<Self> {
        fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(folder)
            .stdin(Stdio::null())
            .output()
            .context(|| "run mount".into())?;
        if !output.status.success() {
            return Err(Error::Failed {
                what: "mounting a small disk".into(),
                status: output.status,
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Takes up all the space that is left.
    pub fn fill(&self) -> Result<()> {
        let path = self.folder.join(FILLER);
        let mut file = fs::File::create(&path).context(|| format!("make {}", path.display()))?;
        let chunk = vec![1; 64 * 1024];
        loop {
            match file.write(&chunk) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context(|| "fill a disk".into()),
            }
        }
    }

    /// Gives the space back.
    pub fn free(&self) -> Result<()> {
        let path = self.folder.join(FILLER);
        fs::remove_file(&path).context(|| format!("remove {}", path.display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that was just killed may still hold files for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}
