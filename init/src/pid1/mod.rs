//! The role `pid1`.

pub(crate) fn run() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
