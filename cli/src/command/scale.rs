//! `roble scale`.

use super::{Session, wait};
use crate::api::{self, Request};
use crate::failure::Failure;
use crate::flags::Format;
use crate::output;
use crate::reference::{Reference, path};
use clap::Args;
use http::Method;
use roble_proto::rest::{self, ServiceView};
use std::io::Write as _;
use std::time::Duration;

/// Flags of `scale`.
#[derive(Debug, Args)]
pub struct Scale {
    /// Service: `shop/web`.
    #[arg(value_name = "REF")]
    pub service: String,
    /// How many instances.
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(roble_proto::limits::REPLICAS)))]
    pub replicas: u32,
    /// Wait until so many run, and no others.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::text::duration)]
    pub timeout: Duration,
}

pub(crate) async fn run(scale: Scale, session: Session<'_>) -> Result<(), Failure> {
    let Session { api, console, format } = session;
    let deadline = wait::Deadline::after(scale.timeout);
    let body = rest::Scale {
        replicas: scale.replicas,
    };
    let request = Request::new(Method::PUT, path(&["services", &scale.service, "replicas"])).json(&body)?;
    let service: ServiceView = api::send(api, request).await?;
    match format {
        Format::Table => {
            let (path, running) = (&service.path, service.running);
            writeln!(console.out, "{path} scaled to {}, {running} running", service.replicas)?;
            console.out.flush()?;
        }
        _ => output::one(console, format, &service)?,
    }
    if scale.wait {
        let target = Reference::Service(scale.service);
        wait::until(api, &target, &wait::Condition::Running, &deadline).await?;
    }
    Ok(())
}
