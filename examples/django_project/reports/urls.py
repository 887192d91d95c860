from django.contrib.auth.views import LoginView
from django.urls import path

from reports import views

urlpatterns = [
    path("", views.home, name="home"),
    path("reports", views.ask, name="ask"),
    path("login", LoginView.as_view(), name="login"),
]
