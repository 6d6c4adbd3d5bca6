//! The command line (in preparation).

/// Parses the arguments, runs the command, returns the exit code: 0 ok, 1 failed, 2 usage.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
