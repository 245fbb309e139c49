//! Writes tar archives, as images are made of them. Nothing in them depends on when or by whom.

use std::io::{self, Read, Write};

/// The unit of the format.
const BLOCK: usize = 512;

/// An archive that is being written.
pub(super) struct Archive<W: Write> {
    to: W,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to }
    }

    /// Adds a folder. Those around it come first.
    pub(super) fn folder(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.to
            .write_all(&header(&format!("{path}/"), b'5', mode, 0)?)
    }

    /// Adds a file of so many bytes.
    pub(super) fn file(
        &mut self,
        path: &str,
        mode: u32,
        size: u64,
        content: impl Read,
    ) -> io::Result<()> {
        self.to.write_all(&header(path, b'0', mode, size)?)?;
        let copied = io::copy(&mut content.take(size), &mut self.to)?;
        if copied != size {
            return Err(io::Error::other(format!("{path} became shorter")));
        }
        let rest = BLOCK - (size % BLOCK as u64) as usize;
        self.to.write_all(&[0; BLOCK][..rest % BLOCK])
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }
}

fn header(path: &str, kind: u8, mode: u32, size: u64) -> io::Result<[u8; BLOCK]> {
    let mut header = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    if path.len() > 100 {
        return Err(io::Error::other(format!("{path} is too long for an image")));
    }
    put(0, path);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    // The checksum is made over spaces in its own place.
    put(148, "        ");
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_reads_what_is_written() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("etc", 0o755).unwrap();
        let text = [b'x'; 700];
        archive.file("etc/long", 0o644, 700, &text[..]).unwrap();
        archive
            .file("etc/short", 0o755, 5, &b"hello, world"[..])
            .unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut tar = Command::new("tar")
            .args([
                "--list",
                "--verbose",
                "--numeric-owner",
                "--utc",
                "--file=-",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).unwrap();
        let words: Vec<Vec<&str>> = listed
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let size_and_name = |n: usize| (words[n][0], words[n][2], *words[n].last().unwrap());
        assert_eq!(size_and_name(0), ("drwxr-xr-x", "0", "etc/"));
        assert_eq!(size_and_name(1), ("-rw-r--r--", "700", "etc/long"));
        assert_eq!(size_and_name(2), ("-rwxr-xr-x", "5", "etc/short"));
    }
}
