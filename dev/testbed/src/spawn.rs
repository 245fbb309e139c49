//! Starts child processes that cannot outlive this process, however it ends.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::{
        LazyLock,
        mpsc::{Sender, channel, sync_channel},
    },
    thread,
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getpid, getppid},
};

type Job = Box<dyn FnOnce() + Send>;

/// The kernel sends the death signal when the *thread* that forked ends, and test threads and
/// tokio's blocking threads come and go. So one thread, which lives as long as the process,
/// starts every child.
static SPAWNER: LazyLock<io::Result<Sender<Job>>> = LazyLock::new(|| {
    let (sender, jobs) = channel::<Job>();
    thread::Builder::new()
        .name("testbed-spawner".into())
        .spawn(move || jobs.into_iter().for_each(|job| job()))?;
    Ok(sender)
});

/// Starts `command` so that it is killed when this process ends, even by `kill -9`, and in a
/// process group of its own, so that Ctrl-C reaches it only through us.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    command.process_group(0);
    let parent = getpid();
    // SAFETY: between fork and exec only system calls are made (prctl, getppid): nothing is
    // allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || die_with(parent));
    }
    let (reply, answer) = sync_channel(1);
    let job = Box::new(move || {
        // The receiver waits right below; it can be gone only if this process is ending.
        let _ = reply.send(command.spawn());
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    match &*SPAWNER {
        Ok(spawner) => spawner.send(job).map_err(|_| gone())?,
        Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
    }
    answer.recv().map_err(|_| gone())?
}

fn die_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the call above: then nobody would send the signal.
    if getppid() != parent {
        return Err(io::Error::other("the parent is gone"));
    }
    Ok(())
}
