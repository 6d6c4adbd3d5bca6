//! The command line: everything is in [`surprisal::cli`].

fn main() -> std::process::ExitCode {
    surprisal::cli::main()
}
