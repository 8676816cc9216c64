//! Handing text to `nft`, and asking what is there.

use super::DatapathError;
use super::ruleset::TABLE;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
use std::io;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

// linux/netfilter/nfnetlink.h, nf_tables.h.
const NFT_MSG_NEWGEN: u16 = (10 << 8) | 15;
const NFT_MSG_GETGEN: u16 = (10 << 8) | 16;
const NFTA_GEN_ID: u16 = 1;
const NLM_F_REQUEST: u16 = 1;

/// Hands `text` to `nft`, which applies all of it or nothing, in the namespace of this process.
///
/// # Errors
/// [`DatapathError::RunNft`], [`DatapathError::NftRefused`].
pub async fn load(text: &str) -> Result<(), DatapathError> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(DatapathError::RunNft)?;
    let mut input = child.stdin.take().expect("standard input was asked for");
    // If nft ends early, its own message says more than the broken pipe.
    let _ = input.write_all(text.as_bytes()).await;
    drop(input);
    let output = child.wait_with_output().await.map_err(DatapathError::RunNft)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr)
        .lines()
        .take(3)
        .collect::<Vec<_>>()
        .join("; ");
    Err(DatapathError::NftRefused { message })
}

/// Our table as it is in the kernel, without counters; empty if there is none.
///
/// # Errors
/// [`DatapathError::RunNft`].
pub async fn list() -> Result<String, DatapathError> {
    let output = tokio::process::Command::new("nft")
        .args(["--stateless", "list", "table"])
        .args(TABLE.split(' '))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(DatapathError::RunNft)?;
    Ok(if output.status.success() {
        String::from_utf8_lossy(&output.stdout).into_owned()
    } else {
        String::new()
    })
}

/// How many transactions the tables of this namespace have seen, anybody's: while it stays, nothing was changed.
///
/// # Errors
/// If the kernel does not say.
pub fn generation() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(NFT_MSG_GETGEN.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let field = |at: usize, length: usize| answer.get(at..at + length).ok_or(io::ErrorKind::UnexpectedEof);
    if field(4, 2)? != NFT_MSG_NEWGEN.to_ne_bytes() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut at = 20;
    loop {
        let length = u16::from_ne_bytes(field(at, 2)?.try_into().expect("two bytes"));
        if field(at + 2, 2)? == NFTA_GEN_ID.to_ne_bytes() {
            return Ok(u32::from_be_bytes(field(at + 4, 4)?.try_into().expect("four bytes")));
        }
        at += usize::from(length.max(4)).next_multiple_of(4);
    }
}
