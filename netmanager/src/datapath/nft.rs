//! Handing text to `nft`, and asking what is there.

use super::ruleset::TABLE;
use super::{Count, DatapathError, netfilter};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

// linux/netfilter/nfnetlink.h, nf_tables.h.
const NFT_MSG_NEWGEN: u16 = (10 << 8) | 15;
const NFT_MSG_GETGEN: u16 = (10 << 8) | 16;
const NFTA_GEN_ID: u16 = 1;
const NFT_MSG_NEWOBJ: u16 = (10 << 8) | 18;
const NFT_MSG_GETOBJ: u16 = (10 << 8) | 19;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFPROTO_INET: u8 = 1;
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

/// What the named counters of our table have counted. One request, and no program is run.
///
/// # Errors
/// If the kernel does not say.
pub fn counters() -> io::Result<BTreeMap<String, Count>> {
    let socket = netfilter::open()?;
    let table = TABLE.split(' ').next_back().unwrap_or_default();
    let body = [
        &[NFPROTO_INET, 0, 0, 0],
        netfilter::attribute(NFTA_OBJ_TABLE, format!("{table}\0").as_bytes()).as_slice(),
        netfilter::attribute(NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes()).as_slice(),
    ]
    .concat();
    let mut counted = BTreeMap::new();
    netfilter::dump(&socket, NFT_MSG_GETOBJ, &body, |kind, attributes| {
        let count = || {
            let data = netfilter::find(attributes, NFTA_OBJ_DATA)?;
            let number = |kind| Some(u64::from_be_bytes(netfilter::find(data, kind)?.try_into().ok()?));
            let name = netfilter::find(attributes, NFTA_OBJ_NAME)?;
            let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned();
            let count = Count {
                packets: number(NFTA_COUNTER_PACKETS)?,
                bytes: number(NFTA_COUNTER_BYTES)?,
            };
            Some((name, count))
        };
        counted.extend(count().filter(|_| kind == NFT_MSG_NEWOBJ));
    })?;
    Ok(counted)
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
