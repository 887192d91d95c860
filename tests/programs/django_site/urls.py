from django.contrib import admin
from django.urls import path

from tests.programs.django_site import views

urlpatterns = [
    path("admin/own", views.quiet),
    path("admin/", admin.site.urls),
    path("staff/", admin.AdminSite("staff").urls),
    path("sync/page", views.page),
    path("async/page", views.apage),
    path("sync/stream", views.stream),
    path("async/stream", views.astream),
    path("sync/login", views.sign_in),
    path("async/login", views.asign_in),
    path("sync/quiet", views.quiet),
    path("async/quiet", views.aquiet),
    path("async/unloaded", views.unloaded),
    path("again/login", views.sign_in_again),
    path("logout", views.sign_out),
    path("set", views.set_user),
    path("data", views.data),
    path("file", views.file),
    path("failing", views.failing),
    path("dropped", views.dropped),
    path("adropped", views.adropped),
    path("api", views.Api.as_view()),
]
