//! One organization's view of the root's objects. Handlers get objects only from here, so that nothing of another
//! organization can be seen or changed by forgetting a check; what is foreign is simply not found.

use super::model::{Application, Service};
use super::{Refusal, RootTier};
use roble_core::ids::{InstanceId, OrganizationId, ServiceId};
use roble_core::planted::{Bug, is_planted};

/// A view of the root limited to one organization.
#[derive(Clone, Copy)]
pub struct Tenant<'a> {
    root: &'a RootTier,
    organization: OrganizationId,
}

impl RootTier {
    /// The view of one organization.
    pub const fn tenant(&self, organization: OrganizationId) -> Tenant<'_> {
        Tenant {
            root: self,
            organization,
        }
    }
}

impl<'a> Tenant<'a> {
    /// Its applications, by id.
    pub fn applications(self) -> impl Iterator<Item = &'a Application> {
        self.root
            .applications
            .values()
            .filter(move |application| application.organization == self.organization)
    }

    /// Its services, by id, those being deleted too.
    pub fn services(self) -> impl Iterator<Item = &'a Service> {
        self.root
            .services
            .values()
            .filter(move |service| service.organization == self.organization || is_planted(Bug::DropOrganization))
    }

    /// An application by name or id.
    ///
    /// # Errors
    /// 404 if there is none of its own.
    pub fn application(self, reference: &str) -> Result<&'a Application, Refusal> {
        self.applications()
            .find(|application| application.name == reference || application.id.to_string() == reference)
            .ok_or_else(|| not_found("application", reference, "roble get apps"))
    }

    /// A service by `app/service` or id; one that is being deleted only by id or if there is no other.
    ///
    /// # Errors
    /// 404 if there is none of its own.
    pub fn service(self, reference: &str) -> Result<&'a Service, Refusal> {
        let matches = |service: &&Service| service.path == reference || service.id.to_string() == reference;
        let living = self.services().filter(|service| !service.deleting).find(matches);
        living
            .or_else(|| self.services().find(matches))
            .ok_or_else(|| not_found("service", reference, "roble get services"))
    }

    /// An instance by `app/service.N` or `<service id>.N`. It need not exist any more.
    ///
    /// # Errors
    /// 404 if there is none of its own.
    pub fn instance(self, reference: &str) -> Result<(InstanceId, &'a Service), Refusal> {
        let missing = || not_found("instance", reference, "roble ps");
        let (service, number) = reference.rsplit_once('.').ok_or_else(missing)?;
        let number = number.parse().map_err(|_| missing())?;
        let service = self.service(service).map_err(|_| missing())?;
        let instance = InstanceId {
            service: service.id,
            number,
        };
        if self.root.children.orchestrator().contains(instance) {
            Ok((instance, service))
        } else {
            Err(missing())
        }
    }

    /// The instances of one of its services, by number.
    pub fn instances(self, service: ServiceId) -> Vec<InstanceId> {
        match self
            .root
            .services
            .get(&service)
            .filter(|service| service.organization == self.organization)
        {
            Some(_) => self.root.instances_of(service),
            None => Vec::new(),
        }
    }
}

/// 404 that says how to see what there is.
pub(super) fn not_found(kind: &str, reference: &str, list: &str) -> Refusal {
    let reference: String = reference.chars().take(128).collect();
    Refusal::new(
        "not-found",
        format!("there is no {kind} `{reference}`; `{list}` shows what there is"),
    )
}
