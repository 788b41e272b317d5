package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod/manifest"
)

// images brings here what a container needs: its own image, and those of the
// image volumes that it mounts.
func (s *podSync) images(ctx context.Context, c *corev1.Container) error {
	if err := s.image(ctx, c, c.Image, c.ImagePullPolicy); err != nil {
		return err
	}
	for _, v := range s.pod.Spec.Volumes {
		mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		if v.Image == nil || !mounted {
			continue
		}
		if err := s.image(ctx, c, v.Image.Reference, v.Image.PullPolicy); err != nil {
			return err
		}
	}
	return nil
}

// image obeys the pull policy. Images of the registry "localhost" are only ever imported.
func (s *podSync) image(ctx context.Context, c *corev1.Container, ref string, policy corev1.PullPolicy) error {
	local := s.e.opts.Pull == nil || strings.HasPrefix(ref, "localhost/")
	if policy == corev1.PullAlways && !local {
		return s.pulling(ctx, c, ref)
	}
	_, err := s.e.opts.Images.Get(ctx, ref)
	switch {
	case err == nil:
		s.e.opts.Events.Normal(s.aboutContainer(c.Name), eventPulled, "Container image %q already present on machine", ref)
		return nil
	case errors.Is(err, images.ErrInvalid):
		return &waiting{reasonBadImage, err}
	case !errors.Is(err, images.ErrNotFound):
		return &waiting{reasonPull, err}
	case policy == corev1.PullNever:
		return &waiting{reasonNeverPull, fmt.Errorf("image %s is not on this host and imagePullPolicy is Never; import it with: pausa images import", ref)}
	case local:
		return &waiting{reasonPull, fmt.Errorf("image %s is not on this host and cannot be pulled; import it with: pausa images import", ref)}
	}
	return s.pulling(ctx, c, ref)
}

// pulling is pull with its events.
func (s *podSync) pulling(ctx context.Context, c *corev1.Container, ref string) error {
	o, began := s.aboutContainer(c.Name), s.e.clock.Now()
	s.e.opts.Events.Normal(o, eventPulling, "Pulling image %q", ref)
	err := s.pull(ctx, ref)
	if err == nil {
		s.e.opts.Events.Normal(o, eventPulled, "Successfully pulled image %q in %v", ref, s.e.clock.Now().Sub(began).Round(time.Millisecond))
	}
	return err
}

// pull tries each credential of the pod's imagePullSecrets that is for the
// image, the most specific first; when there is none, the daemon's own.
func (s *podSync) pull(ctx context.Context, ref string) error {
	keys, problem := s.keyring()
	auths, err := keys.For(ref)
	if err != nil {
		return &waiting{reasonBadImage, err}
	}
	if len(auths) == 0 {
		auths = []images.Auth{{}}
	}
	for _, a := range auths {
		err = s.e.opts.Pull(ctx, ref, a)
		if !errors.Is(err, images.ErrAccess) && !errors.Is(err, images.ErrNotFound) {
			break
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, images.ErrInvalid):
		return &waiting{reasonBadImage, err}
	case errors.Is(err, images.ErrUnverified):
		return &waiting{reasonUnverified, err}
	case problem != nil:
		return &waiting{reasonPull, fmt.Errorf("%w; not all imagePullSecrets can be used: %w", err, problem)}
	}
	return &waiting{reasonPull, err}
}

// keyring holds what the pod's imagePullSecrets do. As with Kubernetes, one that
// cannot be used is a problem only if the pull then fails.
func (s *podSync) keyring() (*images.Keyring, error) {
	k := &images.Keyring{}
	var errs []error
	for _, r := range s.pod.Spec.ImagePullSecrets {
		o, ok := s.e.lookup(manifest.KindSecret, s.pod.Namespace, r.Name)
		if !ok {
			errs = append(errs, fmt.Errorf("the Secret %s/%s does not exist", s.pod.Namespace, r.Name))
			continue
		}
		var err error
		switch secret := o.Value().(*corev1.Secret); secret.Type {
		case corev1.SecretTypeDockerConfigJson:
			err = k.Add(secret.Data[corev1.DockerConfigJsonKey])
		case corev1.SecretTypeDockercfg:
			err = k.AddLegacy(secret.Data[corev1.DockerConfigKey])
		default:
			err = fmt.Errorf("its type is %s; use %s", secret.Type, corev1.SecretTypeDockerConfigJson)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("the Secret %s/%s: %w", s.pod.Namespace, r.Name, err))
		}
	}
	return k, errors.Join(errs...)
}
