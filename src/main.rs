//! The program `mongomirror`: see `cli`.

use std::process::ExitCode;

/// Batches of a megabyte are built and dropped all the time; glibc's allocator would give each
/// back to the system and cost two thirds of the throughput.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    mongomirror::cli::main()
}
