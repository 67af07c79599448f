//! The role `node`.

mod context;
mod engine;

pub(crate) fn run() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
