//! Rules of descriptors about who may call a service: from names to ids, as those that they name come and go.

use super::RootTier;
use super::model::{Application, Service};
use roble_core::descriptor::{AllowRule, ServiceDescriptor};
use roble_core::ids::{OrganizationId, ServiceId};
use roble_core::overlay::row::Allowed;
use roble_proto::rest::Finding;
use std::collections::BTreeSet;

impl RootTier {
    /// Who may call a service, of those that are there now.
    pub(super) fn resolve_rules(&self, service: &Service) -> Vec<Allowed> {
        let rules = service.descriptor.allow.iter();
        let allowed: BTreeSet<Allowed> = rules.flat_map(|rule| self.resolve_rule(service, rule)).collect();
        allowed.into_iter().collect()
    }

    pub(super) fn resolve_rule(&self, service: &Service, rule: &AllowRule) -> Vec<Allowed> {
        let Some(organization) = self.organization_of(service.organization, rule) else {
            return Vec::new();
        };
        // Inside its own application all is open.
        let applications = self.tenant(organization).applications();
        let applications = applications.filter(|application| application.id != service.application);
        let allowed = |application: &Application, service: Option<ServiceId>| Allowed {
            application: application.id,
            service,
            ports: rule.ports.clone(),
        };
        let Some((name, only)) = rule.caller() else {
            return applications.map(|application| allowed(application, None)).collect();
        };
        let Some(application) = applications.into_iter().find(|application| application.name == name) else {
            return Vec::new();
        };
        let Some(only) = only else {
            return vec![allowed(application, None)];
        };
        let path = format!("{name}/{only}");
        let services = self.tenant(organization).services();
        let services = services.filter(|service| service.application == application.id && service.path == path);
        services.map(|service| allowed(application, Some(service.id))).collect()
    }

    fn organization_of(&self, own: OrganizationId, rule: &AllowRule) -> Option<OrganizationId> {
        let Some(name) = &rule.organization else {
            return Some(own);
        };
        let found = self
            .organizations
            .values()
            .find(|organization| organization.name == *name);
        found.map(|organization| organization.id)
    }

    /// Tells anew of services whose rules may name somebody who has come or gone.
    pub(super) fn refresh_rules(&mut self) {
        if !std::mem::take(&mut self.overlay.is_renamed) {
            return;
        }
        let with_rules = self
            .services
            .values()
            .filter(|service| !service.descriptor.allow.is_empty());
        let resolved: Vec<_> = with_rules
            .map(|service| (service.id, self.resolve_rules(service)))
            .collect();
        for (id, allows) in resolved {
            if let Some(service) = self.services.get(&id) {
                self.overlay.publish(service, allows);
            }
        }
    }

    /// What the rules of a service name that is not there, nor in `coming` (`APPLICATION`, `APPLICATION/SERVICE`). Of other
    /// organisations nothing is said: what they have is theirs. `path`: of the service in its descriptor.
    pub(super) fn unresolved_rules(
        &self,
        organization: OrganizationId,
        service: &ServiceDescriptor,
        path: &str,
        coming: &BTreeSet<String>,
    ) -> Vec<Finding> {
        let own = |rule: &&AllowRule| self.organization_of(organization, rule) == Some(organization);
        let rules = service.allow.iter().enumerate().filter(|(_, rule)| own(rule));
        let tenant = self.tenant(organization);
        let is_there = |name: &str| {
            coming.contains(name)
                || tenant
                    .applications()
                    .any(|application| application.name == name && !application.deleting)
                || tenant
                    .services()
                    .any(|service| service.path == name && !service.deleting)
        };
        let missing = rules.filter_map(|(number, rule)| {
            let from = rule.from.as_deref().filter(|from| !is_there(from))?;
            let kind = if from.contains('/') { "service" } else { "application" };
            Some(Finding {
                path: format!("{path}.allow[{number}].from"),
                line: None,
                code: "consequence".to_owned(),
                message: format!("there is no {kind} `{from}`: the rule takes effect when there is one"),
                help: String::new(),
            })
        });
        missing.collect()
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
