//! What users see: the REST types, made from the state.

use super::model::{Application, Service};
use super::{Answer, Refusal, RootTier};
use roble_core::ids::{ChildId, ClusterId, InstanceId, OrganizationId};
use roble_core::liveness::Standing;
use roble_core::registry::Member;
use roble_core::resources::Resources;
use roble_core::status::{InstanceStatus, Phase};
use roble_core::time::Now;
use roble_proto::rest::{ApplicationView, ClusterView, InstanceView, ServiceView};

/// A value as the answer to a call.
pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    serde_json::to_value(value).map_err(|error| Refusal::new("internal", error.to_string()))
}

impl RootTier {
    /// The status of an instance as users see it: what cannot be placed is pending.
    pub(super) fn instance_status(&self, instance: InstanceId) -> Option<InstanceStatus> {
        let mut status = self.children.orchestrator().view(instance)?;
        if status.phase == Phase::Refused {
            status.phase = Phase::Pending;
        }
        Some(status)
    }

    pub(super) fn applications(&self, own: OrganizationId, reference: Option<&str>) -> Answer {
        let tenant = self.tenant(own);
        match reference {
            Some(reference) => json(&self.application_view(tenant.application(reference)?)),
            None => json(
                &tenant
                    .applications()
                    .map(|one| self.application_view(one))
                    .collect::<Vec<_>>(),
            ),
        }
    }

    pub(super) fn services(&self, own: OrganizationId, reference: Option<&str>) -> Answer {
        let tenant = self.tenant(own);
        match reference {
            Some(reference) => json(&self.service_view(tenant.service(reference)?)),
            None => json(&tenant.services().map(|one| self.service_view(one)).collect::<Vec<_>>()),
        }
    }

    pub(super) fn instances(&self, own: OrganizationId, reference: Option<&str>, now: Now) -> Answer {
        let tenant = self.tenant(own);
        if let Some(reference) = reference {
            let (instance, service) = tenant.instance(reference)?;
            return json(&self.instance_view(instance, service, now));
        }
        let mut all: Vec<InstanceView> = Vec::new();
        for service in tenant.services() {
            let instances = tenant.instances(service.id);
            all.extend(
                instances
                    .into_iter()
                    .filter_map(|instance| self.instance_view(instance, service, now)),
            );
        }
        all.sort_by(|a, b| a.path.cmp(&b.path));
        json(&all)
    }

    fn application_view(&self, application: &Application) -> ApplicationView {
        let services = self.tenant(application.organization).services();
        ApplicationView {
            id: application.id,
            name: application.name.clone(),
            description: application.description.clone(),
            services: services
                .filter(|service| service.application == application.id)
                .map(|service| self.service_view(service))
                .collect(),
            created_at: application.created_at,
        }
    }

    pub(super) fn service_view(&self, service: &Service) -> ServiceView {
        let views = self
            .instances_of(service.id)
            .into_iter()
            .filter_map(|instance| self.instance_status(instance));
        let (mut running, mut up_to_date) = (0, 0);
        for view in views.filter(|view| view.phase == Phase::Running) {
            running += 1;
            up_to_date += u32::from(view.version.generation.0 == service.generation);
        }
        let spec = service.specs.get(&service.generation);
        ServiceView {
            id: service.id,
            path: service.path.clone(),
            generation: service.generation,
            replicas: service.replicas,
            up_to_date,
            running,
            deleting: service.deleting,
            image: service.descriptor.image.clone(),
            resources: spec.map_or(Resources::ZERO, |spec| spec.resources),
            ports: service.descriptor.ports.clone(),
            descriptor: serde_json::to_value(&service.descriptor).unwrap_or_default(),
            addresses: self.overlay.addresses_of(service.id),
            created_at: service.created_at,
            updated_at: service.updated_at,
        }
    }

    pub(super) fn instance_view(&self, instance: InstanceId, service: &Service, now: Now) -> Option<InstanceView> {
        let status = self.instance_status(instance)?;
        let orchestrator = self.children.orchestrator();
        let holder = orchestrator.holder(instance);
        let epochs = orchestrator
            .record(instance)
            .map(|record| vec![record.epoch])
            .unwrap_or_default();
        Some(InstanceView {
            path: format!("{}.{}", service.path, instance.number),
            id: instance.to_string(),
            phase: status.phase,
            reason: status.reason,
            generation: status.version.generation.0,
            epochs,
            restarts: status.restarts,
            exit_code: status.exit_code,
            started_at: status.started_at,
            cluster: holder.map(|child| self.cluster_name(child)),
            cluster_id: holder.map(|child| ClusterId(child.0)),
            node: status.node,
            node_name: status.node_name,
            node_address: status.node_address,
            ports: status.ports,
            image_digest: status.image_digest,
            addresses: status.addresses,
            service_addresses: self.overlay.addresses_of_instance(instance),
            age_ms: holder
                .and_then(|child| orchestrator.child(child, now))
                .and_then(|child| child.silent_ms),
        })
    }

    pub(super) fn cluster_view(&self, member: &Member, now: Now) -> ClusterView {
        let child = self.children.orchestrator().child(member.id, now);
        ClusterView {
            id: ClusterId(member.id.0),
            name: member.name.clone(),
            state: member.state,
            standing: child
                .as_ref()
                .map_or("-", |child| Standing::as_str(child.standing))
                .to_owned(),
            silent_ms: child.as_ref().and_then(|child| child.silent_ms),
            cordoned: member.cordoned,
            cloned: member.cloned,
            labels: child
                .as_ref()
                .map(|child| child.profile.labels.clone())
                .unwrap_or_default(),
            offers: child
                .as_ref()
                .map(|child| child.profile.offers.clone())
                .unwrap_or_default(),
            reserved: child.as_ref().map_or(Resources::ZERO, |child| child.reserved),
            instances: child.as_ref().map_or(0, |child| child.instances),
            software: child
                .as_ref()
                .map(|child| child.profile.software.clone())
                .unwrap_or_default(),
            joined_at: member.joined_at,
        }
    }

    pub(super) fn cluster(&self, reference: &str) -> Result<&Member, Refusal> {
        self.registry
            .member_named(reference)
            .or_else(|| self.registry.member(reference.parse::<ChildId>().ok()?))
            .ok_or_else(|| super::tenant::not_found("cluster", reference, "roble get clusters"))
    }
}
