//! Applications and services: apply, scale, delete, and the rollout of their instances.

use super::model::{self, Application, Event as Happening, Service};
use super::{Act, Answer, Refusal, RootTier, version};
use rand::RngCore;
use roble_core::descriptor::{self, ApplicationDescriptor, Format, ServiceDescriptor};
use roble_core::ids::{ApplicationId, InstanceId, OrganizationId, ServiceId};
use roble_core::rollout::{self, Current};
use roble_core::spec::Assignment;
use roble_core::status::Phase;
use roble_core::tier::{Output, Write};
use roble_core::time::Now;
use roble_core::version::Generation;
use roble_proto::limits::REPLICAS;
use roble_proto::rest::{Applied, AppliedService, Change, Deleted, ErrorBody, Finding};
use std::collections::{BTreeMap, BTreeSet};

impl RootTier {
    pub(super) fn apply(
        &mut self,
        organization: OrganizationId,
        bytes: &[u8],
        dry_run: bool,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Answer {
        let parsed = descriptor::parse(bytes, Format::Auto).map_err(|mistakes| Refusal {
            status: 422,
            body: ErrorBody {
                code: "descriptor-invalid".to_owned(),
                message: format!("the descriptor has {} mistake(s); nothing was changed", mistakes.len()),
                mistakes: mistakes.iter().map(finding).collect(),
            },
        })?;
        // Everything is checked before anything is changed.
        for application in &parsed.descriptor.applications {
            self.check_requested_id(organization, application)?;
            self.check_addresses(organization, application)?;
        }
        let mut warnings: Vec<Finding> = parsed.warnings.iter().map(finding).collect();
        warnings.extend(self.unresolved_of(organization, &parsed.descriptor.applications));
        let mut services = Vec::new();
        for (index, application) in parsed.descriptor.applications.iter().enumerate() {
            let own = |service| parsed.warnings_of(index, service).into_iter().map(finding).collect();
            services.extend(self.apply_application(organization, application, own, dry_run, now, rng, out));
        }
        super::views::json(&Applied {
            services,
            warnings,
            dry_run,
        })
    }

    /// What rules name that is neither there nor in the same descriptor.
    fn unresolved_of(&self, organization: OrganizationId, applications: &[ApplicationDescriptor]) -> Vec<Finding> {
        let names = applications.iter().flat_map(|application| {
            let services = application.services.iter();
            let services = services.map(|service| format!("{}/{}", application.name, service.name));
            services.chain([application.name.clone()])
        });
        let coming: BTreeSet<String> = names.collect();
        let findings = applications.iter().enumerate().flat_map(|(index, application)| {
            application.services.iter().flat_map({
                let coming = &coming;
                move |service| {
                    let path = match applications {
                        [_] => format!("services.{}", service.name),
                        _ => format!("applications[{index}].services.{}", service.name),
                    };
                    self.unresolved_rules(organization, service, &path, coming)
                }
            })
        });
        findings.collect()
    }

    fn check_requested_id(&self, organization: OrganizationId, wanted: &ApplicationDescriptor) -> Result<(), Refusal> {
        let Some(id) = wanted.requested_id else { return Ok(()) };
        let found = self.tenant(organization).application(&id.to_string())?;
        if found.name == wanted.name {
            return Ok(());
        }
        let message = format!(
            "application {id} is `{}`, but the descriptor calls it `{}`",
            found.name, wanted.name
        );
        Err(Refusal::new("name-mismatch", message))
    }

    #[allow(clippy::too_many_arguments)]
    fn apply_application(
        &mut self,
        organization: OrganizationId,
        wanted: &ApplicationDescriptor,
        warnings_of: impl Fn(usize) -> Vec<Finding>,
        dry_run: bool,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Vec<AppliedService> {
        let known = self
            .tenant(organization)
            .applications()
            .find(|application| application.name == wanted.name)
            .cloned();
        let mut application = known.clone().unwrap_or_else(|| Application {
            id: ApplicationId::generate(now.wall, rng),
            organization,
            name: wanted.name.clone(),
            description: String::new(),
            deleting: false,
            created_at: now.wall,
        });
        application.deleting = false;
        if !wanted.description.is_empty() {
            application.description.clone_from(&wanted.description);
        }
        if !dry_run && known.as_ref() != Some(&application) {
            out.writes.push(model::put(
                "application",
                &application.id,
                Some(organization),
                &application,
            ));
            self.applications.insert(application.id, application.clone());
            self.overlay.is_renamed = true;
        }
        let services = wanted.services.iter().enumerate();
        services
            .map(|(index, service)| {
                let warnings = warnings_of(index);
                self.apply_service(&application, service, warnings, dry_run, now, rng, out)
            })
            .collect()
    }

    #[allow(clippy::too_many_arguments)]
    fn apply_service(
        &mut self,
        application: &Application,
        wanted: &ServiceDescriptor,
        warnings: Vec<Finding>,
        dry_run: bool,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> AppliedService {
        let organization = application.organization;
        let path = format!("{}/{}", application.name, wanted.name);
        let spec = wanted.to_spec(organization, application.id, &application.name);
        let known = self
            .tenant(organization)
            .services()
            .find(|service| service.path == path && !service.deleting)
            .cloned();
        let (service, change) = match known {
            Some(mut service) => {
                let newest = service.specs.get(&service.generation);
                let same_spec = newest.is_some_and(|newest| **newest == *spec.template);
                if !same_spec {
                    service.generation += 1;
                    service.specs.insert(service.generation, spec.template.clone());
                }
                let same_rules = service.descriptor.allow == wanted.allow;
                let same = same_spec && same_rules && service.replicas == spec.replicas;
                service.replicas = spec.replicas;
                service.descriptor = wanted.clone();
                service.warnings = warnings;
                if !same {
                    service.updated_at = now.wall;
                }
                (service, if same { Change::Unchanged } else { Change::Updated })
            }
            None => {
                let service = Service {
                    id: ServiceId::generate(now.wall, rng),
                    organization,
                    application: application.id,
                    path: path.clone(),
                    descriptor: wanted.clone(),
                    generation: 1,
                    replicas: spec.replicas,
                    specs: BTreeMap::from([(1, spec.template.clone())]),
                    epoch_floor: 0,
                    addresses: BTreeMap::new(),
                    used: BTreeSet::new(),
                    deleting: false,
                    warnings,
                    created_at: now.wall,
                    updated_at: now.wall,
                };
                (service, Change::Created)
            }
        };
        let applied = AppliedService {
            path: path.clone(),
            application: application.id,
            id: service.id,
            generation: service.generation,
            change,
        };
        if !dry_run {
            self.save_service(service, now, out);
            let (code, message) = match change {
                Change::Created => ("created", "the service was created"),
                Change::Updated => ("updated", "the service was changed"),
                Change::Unchanged => return applied,
            };
            let event = Happening {
                about: path,
                code,
                message: format!("{message} (generation {})", applied.generation),
            };
            self.happen(Some(organization), event, now, rng, out);
        }
        applied
    }

    fn save_service(&mut self, mut service: Service, now: Now, out: &mut Output<Act>) {
        self.give_addresses(&mut service, now, out);
        let used: Vec<u64> = self
            .instances_of(service.id)
            .iter()
            .filter_map(|instance| self.wished.get(instance).copied())
            .collect();
        let newest = service.generation;
        service
            .specs
            .retain(|generation, _| *generation == newest || used.contains(generation));
        out.writes
            .push(model::put("service", &service.id, Some(service.organization), &service));
        self.rollout.insert(service.id);
        if !self.services.contains_key(&service.id) {
            self.overlay.is_renamed = true;
        }
        self.services.insert(service.id, service);
    }

    pub(super) fn scale(
        &mut self,
        organization: OrganizationId,
        reference: &str,
        replicas: u32,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Answer {
        let mut service = self.tenant(organization).service(reference)?.clone();
        if service.deleting {
            return Err(Refusal::new(
                "deleting",
                format!("service `{}` is being deleted", service.path),
            ));
        }
        if replicas > REPLICAS {
            return Err(Refusal::new(
                "out-of-range",
                format!("replicas may be 0 to {REPLICAS}, not {replicas}"),
            ));
        }
        if service.replicas != replicas {
            let message = format!("{} replicas instead of {}", replicas, service.replicas);
            let about = service.path.clone();
            service.replicas = replicas;
            service.descriptor.replicas = replicas;
            service.updated_at = now.wall;
            self.save_service(service.clone(), now, out);
            self.happen(
                Some(organization),
                Happening {
                    about,
                    code: "scaled",
                    message,
                },
                now,
                rng,
                out,
            );
        }
        super::views::json(&self.service_view(&service))
    }

    pub(super) fn delete_service(
        &mut self,
        organization: OrganizationId,
        reference: &str,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Answer {
        let service = self.tenant(organization).service(reference)?.id;
        let (path, remaining_instances) = self.begin_delete(service, now, rng, out);
        super::views::json(&Deleted {
            deleted: vec![path],
            remaining_instances,
        })
    }

    pub(super) fn delete_application(
        &mut self,
        organization: OrganizationId,
        reference: &str,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Answer {
        let mut application = self.tenant(organization).application(reference)?.clone();
        let services: Vec<ServiceId> = self
            .tenant(organization)
            .services()
            .filter(|service| service.application == application.id)
            .map(|service| service.id)
            .collect();
        let mut answer = Deleted {
            deleted: vec![application.name.clone()],
            remaining_instances: 0,
        };
        application.deleting = true;
        out.writes.push(model::put(
            "application",
            &application.id,
            Some(organization),
            &application,
        ));
        self.applications.insert(application.id, application.clone());
        for service in services {
            let (path, remaining) = self.begin_delete(service, now, rng, out);
            answer.deleted.push(path);
            answer.remaining_instances += remaining;
        }
        self.end_application(application.id, out);
        super::views::json(&answer)
    }

    /// Marks a service as to be gone; the record stays until every instance is confirmed gone.
    fn begin_delete(&mut self, id: ServiceId, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) -> (String, u32) {
        let Some(mut service) = self.services.get(&id).cloned() else {
            return (id.to_string(), 0);
        };
        let path = service.path.clone();
        if !service.deleting {
            service.deleting = true;
            service.replicas = 0;
            service.updated_at = now.wall;
            let organization = service.organization;
            self.save_service(service, now, out);
            let event = Happening {
                about: path.clone(),
                code: "deleting",
                message: "the service is being deleted".to_owned(),
            };
            self.happen(Some(organization), event, now, rng, out);
        }
        let remaining = self.instances_of(id).len() as u32;
        if remaining == 0 {
            self.end_service(id, now, out);
        }
        (path, remaining)
    }

    /// An instance is gone everywhere.
    pub(super) fn forget(&mut self, instance: InstanceId, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        self.wished.remove(&instance);
        self.told.remove(&instance);
        self.publish_instance(instance);
        let Some(service) = self.services.get(&instance.service) else {
            out.writes.push(Write::delete("instance", instance));
            return;
        };
        let organization = service.organization;
        let about = format!("{}.{}", service.path, instance.number);
        out.writes.push(Write::delete("instance", instance).of(organization));
        let event = Happening {
            about,
            code: "gone",
            message: "the instance is gone".to_owned(),
        };
        self.happen(Some(organization), event, now, rng, out);
        self.rollout.insert(instance.service);
        if self.instances_of(instance.service).is_empty() {
            self.end_service(instance.service, now, out);
        }
    }

    fn end_service(&mut self, id: ServiceId, now: Now, out: &mut Output<Act>) {
        let Some(service) = self.services.get(&id).filter(|service| service.deleting).cloned() else {
            return;
        };
        self.end_addresses(&service, now, out);
        let application = service.application;
        out.writes.push(Write::delete("service", id).of(service.organization));
        self.services.remove(&id);
        self.overlay.is_renamed = true;
        self.rollout.remove(&id);
        self.end_application(application, out);
    }

    fn end_application(&mut self, id: ApplicationId, out: &mut Output<Act>) {
        let Some(application) = self.applications.get(&id).filter(|application| application.deleting) else {
            return;
        };
        if self.services.values().any(|service| service.application == id) {
            return;
        }
        out.writes
            .push(Write::delete("application", id).of(application.organization));
        self.applications.remove(&id);
        self.overlay.is_renamed = true;
    }

    pub(super) fn instances_of(&self, service: ServiceId) -> Vec<InstanceId> {
        let all = InstanceId { service, number: 0 }..=InstanceId {
            service,
            number: u32::MAX,
        };
        self.wished.range(all).map(|(instance, _)| *instance).collect()
    }

    /// Brings the wishes of the services that need it to what they should be now.
    pub(super) fn roll_out(&mut self, out: &mut Output<Act>) {
        while let Some(id) = self.rollout.pop_first() {
            let Some(service) = self.services.get(&id) else {
                continue;
            };
            let orchestrator = self.children.orchestrator();
            let mut current = BTreeMap::new();
            let mut leaving = Vec::new();
            for instance in self.instances_of(id) {
                let Some(wish) = orchestrator.wish(instance) else {
                    leaving.push(instance.number);
                    continue;
                };
                let view = orchestrator.view(instance);
                let one = Current {
                    wished: wish.version.generation,
                    reported: view.as_ref().map_or(Generation(0), |view| view.version.generation),
                    phase: view.as_ref().map_or(Phase::Pending, |view| view.phase),
                };
                current.insert(instance.number, one);
            }
            let newest = Generation(service.generation);
            let replicas = if service.deleting { 0 } else { service.replicas };
            let mut epoch_floor = service.epoch_floor;
            for change in rollout::plan(replicas, newest, &current) {
                match change {
                    // A number that is still being removed comes back only once it is gone.
                    rollout::Change::Set(number, _) if leaving.contains(&number) => {}
                    rollout::Change::Set(number, generation) => {
                        let Some(spec) = service.specs.get(&generation.0) else {
                            continue;
                        };
                        let instance = InstanceId { service: id, number };
                        self.wished.insert(instance, generation.0);
                        self.children.raise_epoch(instance, service.epoch_floor);
                        let wish = Assignment {
                            instance,
                            version: version(generation.0),
                            spec: spec.clone(),
                        };
                        self.children.set_wish(wish);
                    }
                    rollout::Change::Remove(number) => {
                        let instance = InstanceId { service: id, number };
                        let record = self.children.orchestrator().record(instance);
                        epoch_floor = epoch_floor.max(record.map_or(0, |record| record.epoch));
                        self.children.remove_wish(instance);
                    }
                }
            }
            if let Some(service) = self.services.get_mut(&id)
                && service.epoch_floor < epoch_floor
            {
                service.epoch_floor = epoch_floor;
                out.writes
                    .push(model::put("service", &id, Some(service.organization), service));
            }
        }
    }

    /// Makes an event of a change of phase.
    pub(super) fn tell(&mut self, instance: InstanceId, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        let Some(service) = self.services.get(&instance.service) else {
            return;
        };
        let Some(view) = self.instance_status(instance) else {
            return;
        };
        if self.told.insert(instance, view.phase) == Some(view.phase) {
            return;
        }
        let about = format!("{}.{}", service.path, instance.number);
        let place = match (&view.cluster, self.children.orchestrator().holder(instance)) {
            (_, Some(child)) => format!(" on {}", self.cluster_name(child)),
            _ => String::new(),
        };
        let why = view
            .reason
            .as_ref()
            .map(|reason| format!(": {}", reason.message))
            .unwrap_or_default();
        let message = format!("{}{place}{why}", view.phase);
        self.happen(
            Some(service.organization),
            Happening {
                about,
                code: view.phase.as_str(),
                message,
            },
            now,
            rng,
            out,
        );
    }
}

fn finding(found: &descriptor::Finding) -> Finding {
    Finding {
        path: found.path.clone(),
        line: found.line,
        code: found.code.as_str().to_owned(),
        message: found.message.clone(),
        help: found.help.clone().unwrap_or_default(),
    }
}
