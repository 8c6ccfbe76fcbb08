//! stub
use std::io::{self, Write};
use clap::Args;
use crate::{args::StoreArgs, exit::Exit};
/// Mesh
#[derive(Debug, Args)]
pub(crate) struct PingMeshArgs { #[command(flatten)] pub(crate) store: StoreArgs }
pub(crate) async fn run(_a: &PingMeshArgs, _o: &mut (dyn Write+Send), _e: &mut (dyn Write+Send)) -> io::Result<Exit> { Ok(Exit::Failure) }
